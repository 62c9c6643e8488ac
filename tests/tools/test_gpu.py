"""`make gpu` measures what kvtool knows, and says in one line what keeps it from measuring."""

from __future__ import annotations

import os
import subprocess
import sys
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
