"""Exit 1 means that the answer is no: whatever else goes wrong is one line on standard error and another code."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from kvtool.cli.endings import EXIT_FAULT, ending_of
from kvtool.system.errors import LONGEST_MESSAGE, DeviceError, KvtoolError, one_line
from tests.verify.helpers import LOGS

CATALOGUE = Path(__file__).parents[2] / "models.yaml"
SHAPE = ("--layers", "2", "--heads", "4", "--head-dim", "64")
PLANNED = ("--engine", "vllm", "--kv-cache-memory-bytes", "1GiB", "--max-model-len", "4k")


def kvtool(
    *args: str | bytes | Path,
    stdout: int = subprocess.PIPE,
    **environment: str,
) -> subprocess.CompletedProcess[bytes]:
    """The program in a process of its own, as a user starts it."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    return subprocess.run(
        [sys.executable, "-m", "kvtool", *args],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**inherited, "NO_COLOR": "1", **environment},
    )


def refusal(done: subprocess.CompletedProcess[bytes], code: int = 2) -> str:
    """The one line of standard error, of a program that ended with `code`."""
    told = done.stderr.decode()
    assert done.returncode == code, told
    assert told.startswith("kvtool: ")
    assert told.count("\n") == 1
    assert told.isprintable() or told[:-1].isprintable()
    assert len(told) <= LONGEST_MESSAGE + 1
    return told


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KvtoolError("no\nsuch  model"), 2, "kvtool: no such model"),
        (DeviceError("it failed"), 3, "kvtool: it failed"),
        (KeyboardInterrupt(), 130, "kvtool: interrupted"),
        (MemoryError(), 3, "kvtool: out of memory: this process may have no more"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 3, "kvtool: out of memory: DefaultCPU"),
        (OSError(28, "No space left on device"), 2, "kvtool: cannot read or write standard output: No space left"),
        (ZeroDivisionError("division by zero"), EXIT_FAULT, "kvtool: a fault of kvtool's own, ZeroDivisionError: div"),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_what_ended_the_program_is_one_line_and_a_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvtool.cli.endings._close_output", lambda: None)
    assert ending_of(error) == code
    told = capsys.readouterr().err
    assert told.startswith(line)
    assert told.count("\n") == bool(line)


def test_the_traceback_of_a_fault_is_shown_when_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVTOOL_TRACEBACK", "1")
    ending_of(ZeroDivisionError("division by zero"))
    assert "ZeroDivisionError: division by zero\nkvtool: a fault" in capsys.readouterr().err


def test_a_long_error_loses_its_middle_and_all_that_a_terminal_obeys() -> None:
    assert one_line("a\x1b[31m\u202eb\n c") == r"a\x1b[31m\u202eb c"
    long = one_line("bad " + "x" * 1000 + ": write 5%")
    assert len(long) == LONGEST_MESSAGE
    assert long.startswith("bad xxx")
    assert long.endswith(": write 5%")


def test_wrong_use_is_one_line_that_names_the_help() -> None:
    assert "--contxt" in (told := refusal(kvtool("size", "llama-3.1-8b", "--contxt", "3")))
    assert "kvtool size --help" in told
    refusal(kvtool("size", "--" + "x" * 4000))


def test_an_encoding_of_8_bits_prints_the_bars_with_what_it_has() -> None:
    done = kvtool("size", "llama-3.1-8b", "--gpu", "h100", PYTHONIOENCODING="iso-8859-2", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, b"")
    assert "# weights 15 GiB" in done.stdout.decode("iso-8859-2")


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_full_device_is_one_line(form: tuple[str, ...]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        assert "No space left on device" in refusal(kvtool("gpus", *form, stdout=full))
    finally:
        os.close(full)


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_pipe_that_nobody_reads_is_no_answer(form: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = kvtool("models", *form, stdout=write)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_terminal_of_no_columns_is_printed_to() -> None:
    done = kvtool("gpus", "h100", COLUMNS="0")
    assert b"H100-SXM" in done.stdout


def test_memory_that_runs_out_is_the_devices_fault() -> None:
    script = """
import resource, sys, torch
import kvtool.engine.generate
from pathlib import Path
from kvtool.__main__ import main
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
main()
"""
    # Its embedding alone takes 49152 x 576 x 4 bytes, 108 MiB.
    run = ("generate", "smollm2-135m", "--num-layers", "1", "--dtype", "fp32", "--prompt-ids", "1", "--threads", "1")
    refusal(subprocess.run([sys.executable, "-c", script, *run], capture_output=True), 3)


@pytest.mark.parametrize("text", ["[" * 100_000, "- " * 50_000, "{a: " * 3_000, '{"a": ' * 3_000 + "1" + "}" * 3_000])
@pytest.mark.parametrize("option", ["--models", "--layer-spec"])
def test_what_is_nested_deep_is_refused_before_it_is_read(tmp_path: Path, option: str, text: str) -> None:
    (tmp_path / "deep.yaml").write_text(text)
    model = () if option == "--layer-spec" else ("llama-3.1-8b",)
    assert "deep" in refusal(kvtool("size", *model, option, tmp_path / "deep.yaml"))


@pytest.mark.parametrize("depth", [400, 3_000])
def test_a_config_or_document_nested_deep_is_refused(tmp_path: Path, depth: int) -> None:
    nested = "[" * depth + "]" * depth
    (tmp_path / "config.json").write_text(f'{{"model_type": "llama", "extra": {nested}}}')
    assert "deep" in refusal(kvtool("size", tmp_path / "config.json"))
    (tmp_path / "a.json").write_text(f'{{"schema": "kvtool.calibration/1", "extra": {nested}}}')
    assert "a.json" in refusal(kvtool("size", "llama-3.1-8b", "--gpu", "h100", "--calibration", tmp_path / "a.json"))


def test_an_integer_of_400_digits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    path.write_text('{"schema": "kvtool.calibration/1", "source": "x", "weights_bytes": ' + "9" * 400 + "}")
    assert "measured.json" in refusal(kvtool("size", "llama-3.1-8b", "--gpu", "h100", "--calibration", path))
    bench = json.loads((Path(__file__).parents[1] / "data" / "bench_example.json").read_text())
    bench["cases"][0]["memory"]["kv_allocated_bytes"] = 10**400
    path.write_text(json.dumps(bench))
    assert "measured.json" in refusal(kvtool("compare", path, path))


def test_a_pool_of_nothing_in_a_log_is_held_all_the_same(tmp_path: Path) -> None:
    log = next(path for path in sorted(LOGS.glob("*.log")) if "Available KV cache memory: " in path.read_text())
    head, _, rest = log.read_text().partition("Available KV cache memory: ")
    (tmp_path / "a.log").write_text(f"{head}Available KV cache memory: 0.00{rest[rest.index(' GiB') :]}")
    done = kvtool("verify", tmp_path / "a.log", "llama-3.1-8b", "--json")
    assert done.stderr == b""
    assert json.loads(done.stdout)["verdict"] in ("off", "agrees", "uncompared", "refused")


def test_a_null_character_in_a_weight_map_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1,'
        ' "intermediate_size": 64, "vocab_size": 9}'
    )
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "model.safetensors.index.json").write_text(r'{"weight_map": {"a": "b\u0000.safetensors"}}')
    refusal(kvtool("size", tmp_path))


def test_a_user_without_a_home_gets_an_answer() -> None:
    script = """
import os, pwd
def nobody(uid): raise KeyError(uid)
pwd.getpwuid = nobody
for name in ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME"): os.environ.pop(name, None)
from kvtool.__main__ import main
main()
"""
    ids = ("generate", "smollm2-135m", "--num-layers", "1", "--prompt-ids", "1", "--output-len", "1")
    for args in (("size", "llama-3.1-8b"), ids):
        done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True)
        assert done.returncode == 0, done.stderr


def test_dollars_in_a_name_are_no_formula(tmp_path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1}
    name = tmp_path / "$x_{2$.json"
    name.write_text(json.dumps({**config, "intermediate_size": 64, "vocab_size": 9}))
    for command in (("size", name, "--gpu", "h100"), ("compare", name, "llama-3.1-8b")):
        done = kvtool(*command, "--out", tmp_path / "out")
        assert done.returncode == 0, done.stderr
        assert b"$x_{2$" in done.stdout


@pytest.mark.parametrize("name", ["x/[/red]", "a\x1b[31mb"])
def test_brackets_and_escapes_in_a_name_are_text(tmp_path: Path, name: str) -> None:
    entry = {"id": name, "source": "a", "confidence": "b", "layers": "2 full", "num_heads": 4, "hidden_size": 64}
    entry["full"] = {"kv_heads": 4, "k_head_dim": 16, "v_head_dim": 16}
    (tmp_path / "models.yaml").write_text(json.dumps({"schema": "kvtool.models/1", "models": [entry]}))
    for command in (("size", name, *PLANNED, "--explain"), ("models",)):
        done = kvtool(*command, "--models", tmp_path / "models.yaml")
        assert done.returncode == 0, done.stderr
        assert b"\x1b" not in done.stdout
        assert (b"[/red]" if "red" in name else b"31mb") in done.stdout


def test_a_terminal_keeps_its_colours() -> None:
    primary, secondary = pty.openpty()
    try:
        done = kvtool("size", *SHAPE, stdout=secondary, TERM="xterm-256color", NO_COLOR="")
        assert done.returncode == 0
        assert b"\x1b[1m" in os.read(primary, 1 << 16)
    finally:
        os.close(primary)
        os.close(secondary)
