"""`make gpu` measures what kvtool knows, and says in one line what keeps it from measuring."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer.main

from kvtool.catalog.models_yaml import load_catalogue
from kvtool.cli.app import app
from tools import gpu


@pytest.mark.parametrize("arguments", gpu.SUITE.values())
def test_a_measurement_of_the_suite_is_a_command_of_kvtool(arguments: str) -> None:
    name, *rest = arguments.split()
    context = typer.main.get_group(app).commands[name].make_context(name, rest)
    model = context.params["model"]
    assert model is None or load_catalogue().find(model) is not None


def test_the_tests_come_first_and_every_run_writes_its_own_folder(tmp_path: Path) -> None:
    runs = gpu.commands(tmp_path)
    assert next(iter(runs)) == "tests"
    assert {run[-1] for name, run in runs.items() if name in gpu.SUITE} == {str(tmp_path / name) for name in gpu.SUITE}


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


def test_a_run_that_outlasts_the_deadline_is_stopped_and_failed(capfd: pytest.CaptureFixture[str]) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    start = time.monotonic()
    assert not gpu.succeeds(sleep, deadline=start + 0.5)
    assert not gpu.succeeds([sys.executable, "-c", ""], deadline=start)
    assert time.monotonic() - start < 30
    assert capfd.readouterr().out.count("no time left for this") == 2


@pytest.mark.parametrize(("code", "ends_well"), [(0, True), (3, False)])
def test_a_run_is_as_good_as_its_exit_code(code: int, ends_well: bool) -> None:
    command = [sys.executable, "-c", f"import sys; import kvtool; sys.exit({code})"]
    assert gpu.succeeds(command, deadline=time.monotonic() + 60) is ends_well
