"""Runs the program in this process, which has imported torch already: what it printed, and its exit code."""

from __future__ import annotations

import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from subprocess import CompletedProcess
from unittest.mock import patch

import pytest

from kvtool.cli import main


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: str) -> Done:
    """`kvtool ARGS`, on a terminal of 100 columns."""
    monkeypatch.setattr(sys, "argv", ["kvtool", *args])
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    capsys.readouterr()
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return Done(code, captured.out, captured.err)


def kvtool(*args: str, columns: int = 80) -> CompletedProcess[str]:
    """`kvtool ARGS` as a process of its own would print it, on a terminal of so many columns."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    code, command = 0, ["kvtool", *args]
    environ = {**os.environ, "COLUMNS": str(columns), "NO_COLOR": "1"}
    with patch.object(sys, "argv", command), patch.dict(os.environ, environ):
        try:
            with redirect_stdout(out), redirect_stderr(err):
                main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return CompletedProcess(command, code, *(_written(stream) for stream in (out, err)))


def _written(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()
