"""`make gpu` measures what kvtool knows, and says in one line what keeps it from measuring."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer.main

from kvtool.catalog.models_yaml import load_catalogue
from kvtool.cli.app import app
from kvtool.units import parse_length
from tools import gpu, targets


@pytest.mark.parametrize("piece", gpu.SUITE, ids=lambda piece: piece.name)
def test_a_measurement_of_the_suite_is_a_command_of_kvtool(piece: gpu.Piece) -> None:
    name, *rest = piece.arguments.split()
    context = typer.main.get_group(app).commands[name].make_context(name, rest)
    model = context.params["model"]
    assert model is None or load_catalogue().find(model) is not None


def test_the_tests_come_first_and_every_run_writes_its_own_folder(tmp_path: Path) -> None:
    found = gpu.runs(tmp_path)
    assert [run.name for run in found][:3] == ["tests", "env", "tune"]
    assert [run.command[-1] for run in found[3:]] == [str(tmp_path / piece.name) for piece in gpu.SUITE]
    assert len({run.name for run in found}) == len(found)


def test_every_target_is_a_point_of_the_suite() -> None:
    """A target that no command measures would stay unmeasured on every card."""
    cases = [case for piece in gpu.SUITE for case in cases_of(piece)]
    assert {row.target for row in targets.rows(cases, {"gpu": "H100"}) if row.measured is None} == set()


def cases_of(piece: gpu.Piece) -> list[dict[str, object]]:
    """What a document of the piece would hold: its grid, every figure 1."""
    name, *rest = piece.arguments.split()
    given = typer.main.get_group(app).commands[name].make_context(name, rest).params
    if given["model"] is None:
        return []
    entry = load_catalogue().find(given["model"])
    assert entry is not None
    batches = [int(text) for text in given["batch_size"].split(",")]
    inputs = [{"model": entry.id, "batch_size": batch} for batch in batches]
    if name == "bench":
        lengths = [parse_length(text, "input length") for text in given["input_len"].split(",")]
        return [latency_case(one | {"input_len": length}) for one in inputs for length in lengths]
    decode = "mla_decode" if "deepseek" in given["model"] else "paged_decode"
    found = []
    for text, dtype in itertools.product(given["context"].split(","), given["kv_cache_dtype"].split(",")):
        context, new = parse_length(text, "context"), parse_length(given["chunk_len"] or "2k", "chunk length")
        shape = {"context": context, "kv_cache_dtype": "bf16" if dtype == "auto" else dtype}
        found += [kernel_case(decode, one | shape) for one in inputs]
        found.append(kernel_case("paged_prefill", inputs[0] | shape | {"query_len": min(new, context)}))
    return found


def kernel_case(kernel: str, inputs: dict[str, object]) -> dict[str, object]:
    metrics = {"time_ms": {"p50": 1.0}, "tflops": 1.0}
    return {"name": kernel, "kernel": kernel, "inputs": inputs, "metrics": metrics, "roofline": {"mbu": 1.0}}


def latency_case(inputs: dict[str, object]) -> dict[str, object]:
    metrics = {"tpot_ms": {"p50": 1.0}, "ttft_ms": {"p50": 1.0}}
    return {"name": "latency", "part": "latency", "inputs": inputs, "metrics": metrics, "bytes": {"prefill_flops": 1}}


def test_a_dry_run_says_what_would_run(tmp_path: Path) -> None:
    command = [sys.executable, str(gpu.ROOT / "tools" / "gpu.py"), "--dry-run", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == len(gpu.runs(tmp_path))
    assert not (tmp_path / "out").exists()


def test_without_a_device_it_says_so_in_one_line_and_fails(tmp_path: Path) -> None:
    command = [sys.executable, str(gpu.ROOT / "tools" / "gpu.py"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("make gpu: no CUDA device: torch ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_the_interpreter_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "NEEDED", ("torch", "no_such_module", "nor_this_one"))
    assert "cannot import no_such_module, nor_this_one:" in str(gpu.what_is_missing())


def run(script: str, limit_s: float = 60) -> gpu.Run:
    return gpu.Run("one", [sys.executable, "-c", script], limit_s)


def test_a_run_that_outlasts_its_time_is_interrupted_and_keeps_what_it_has(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept, ready = tmp_path / "kept", fifo(tmp_path)
    script = f"""
import pathlib, signal
try:
    pathlib.Path({str(ready)!r}).write_text("ready")
    signal.pause()
except KeyboardInterrupt:
    pathlib.Path({str(kept)!r}).touch()
"""
    assert not gpu.succeeds(run(script, limit_s=2), deadline=math.inf, wait=out_of_time_once(ready))
    assert kept.exists()
    assert "one outlasted its 2 s" in capfd.readouterr().out


def test_one_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "GRACE_S", 0.0)
    ready = fifo(tmp_path)
    script = f"""
import pathlib, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
pathlib.Path({str(ready)!r}).write_text("ready")
while True:
    signal.pause()
"""
    assert not gpu.succeeds(run(script), deadline=math.inf, wait=out_of_time_once(ready))


def fifo(folder: Path) -> Path:
    """Reading it waits until somebody has written: an event between two processes, however slow they are."""
    path = folder / "ready"
    os.mkfifo(path)
    return path


def out_of_time_once(ready: Path) -> gpu.Wait:
    """Time that is over as soon as the process says that it is where it can be interrupted."""

    def wait(process: subprocess.Popen[bytes], limit_s: float) -> int:
        assert ready.read_text() == "ready"
        raise subprocess.TimeoutExpired(process.args, limit_s)

    return wait


def test_past_the_deadline_nothing_starts(capfd: pytest.CaptureFixture[str]) -> None:
    assert not gpu.succeeds(run(""), deadline=time.monotonic())
    assert "no time left for this" in capfd.readouterr().out


@pytest.mark.parametrize(("code", "ends_well"), [(0, True), (3, False)])
def test_a_run_is_as_good_as_its_exit_code(code: int, ends_well: bool) -> None:
    assert gpu.succeeds(run(f"import sys; import kvtool; sys.exit({code})"), time.monotonic() + 60) is ends_well
