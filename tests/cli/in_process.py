"""Runs the program in this process, which has imported torch already: what it printed, and its exit code."""

from __future__ import annotations

import sys
from dataclasses import dataclass

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
