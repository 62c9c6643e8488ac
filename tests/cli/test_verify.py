"""`kvtool verify` from the outside: what it prints, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kvtool.cli.app import app

LOGS = Path(__file__).parents[1] / "verify" / "logs"
START = str(LOGS / "vllm_0_31_llama_3_1_8b.log")


def kvtool(*args: str, columns: int = 100, **options: object) -> Result:
    return CliRunner().invoke(app, ["verify", *args], env={"COLUMNS": str(columns), "NO_COLOR": "1"}, **options)  # type: ignore[arg-type]


def fails(*args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from kvtool.cli import main; main()", "verify", *args], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("kvtool: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_the_document_has_every_key_of_a_row() -> None:
    done = kvtool(START, "llama-3.1-8b", "--json")
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    assert document["schema"] == "kvtool.verify/1"
    assert document["engine"] == {"name": "vllm", "version": None, "predicted_version": "0.33.0"}
    assert document["inputs"] == {"gpu_memory_utilization": 0.92, "max_model_len": 131_072}
    assert document["refusal"] is None
    tokens = next(row for row in document["rows"] if row["term"] == "tokens")
    assert tokens == {
        "term": "tokens",
        "unit": "tokens",
        **{f"{side}{end}": 460_496 for side in ("logged", "predicted") for end in ("", "_low", "_high")},
        "difference": 0,
        "verdict": "equal",
        "explanation": "",
    }


@pytest.mark.parametrize("columns", [80, 100])
def test_a_table_that_keeps_to_the_terminal(columns: int) -> None:
    shown = kvtool(START, "llama-3.1-8b", columns=columns).output.splitlines()
    assert max(map(len, shown)) <= columns
    line = next(line.split() for line in shown if line.strip().startswith("tokens "))
    assert line == ["tokens", "equal", "460,496", "460,496", "0"]
    assert shown[0] == "Agrees: every term that must be exact is."


def test_exit_codes_say_the_verdict() -> None:
    assert kvtool(START, "llama-3.1-8b").exit_code == 0
    off = kvtool(START, "llama-3.1-8b", "--kv-cache-dtype", "fp8")
    assert off.exit_code == 1
    assert "Off: a term that must be exact is not." in off.output
    refused = kvtool(str(LOGS / "vllm_0_9_free_memory.log"), "llama-3.1-8b")
    assert refused.exit_code == 1
    assert "The engine did not start." in refused.output


def test_standard_input() -> None:
    done = kvtool("-", "llama-3.1-8b", input=Path(START).read_text())
    assert done.exit_code == 0
    assert "460,496" in done.output


def test_what_was_measured_replaces_the_estimates_of_size(tmp_path: Path) -> None:
    saved = tmp_path / "measured.json"
    assert kvtool(START, "llama-3.1-8b", "--save", str(saved)).exit_code == 0
    sized = CliRunner().invoke(
        app, ["size", "llama-3.1-8b", "--gpu", "a100-sxm-80gb", "--calibration", str(saved), "--json"]
    )
    fit = json.loads(sized.stdout)["rows"][0]["fit"]
    assert fit["weights_bytes"] == 15 << 30
    assert fit["activation_bytes"] == round(1.44 * (1 << 30))


def test_a_log_that_is_none(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.log", tmp_path / "binary.log"
    empty.write_bytes(b"")
    binary.write_bytes(bytes(range(256)) * 4000)
    assert "no line that kvtool knows" in fails(str(empty), "llama-3.1-8b")
    assert "no line that kvtool knows" in fails(str(binary))
    assert "cannot read" in fails(str(tmp_path / "none.log"))
    assert "does not say which model" in fails(START)
    assert "did you mean" in fails(START, "llama-3.1-9b")


def test_nothing_is_saved_of_a_log_that_measures_nothing(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("Maximum concurrency for 2048 tokens per request: 10.79x")
    assert "nothing to save" in fails(str(log), "llama-3.1-8b", "--save", str(tmp_path / "x.json"))
    assert not (tmp_path / "x.json").exists()


def test_a_link_or_a_fifo_is_not_replaced_by_what_is_saved(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("Model loading took 14.99 GiB and 3.2 seconds")
    (tmp_path / "link").symlink_to(log)
    script = "from kvtool.cli import main; main()"
    command = [sys.executable, "-c", script, "verify", str(log), "llama-3.1-8b", "--save", str(tmp_path / "link")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "symbolic link" in done.stderr
    assert "14.99 GiB" in done.stdout  # the result was printed first
    assert (tmp_path / "link").is_symlink()
