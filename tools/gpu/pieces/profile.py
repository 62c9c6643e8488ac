"""Tools of CUDA that watch one kernel each, where they are: Nsight Compute's counters, and the sanitizer's memcheck."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tools.gpu.cases import Case, LacksError, Result, file_name, serve
from tools.gpu.pieces.probe import KERNELS, LAUNCHES
from tools.gpu.plan import tool

NCU = ("decode", "gate-up", "prefill", "mla-128")
SANITIZER = ("small-decode", "small-gemv", "small-experts")
LONGEST_TEXT = 60_000
CASE_S = 40.0
ERRORS_FOUND = 9


def cases(given: Namespace) -> Sequence[Case]:
    """By the word: `ncu` or `sanitizer`."""
    watch, probes = (ncu, NCU) if given.words == ["ncu"] else (sanitizer, SANITIZER)
    folder = given.folder / given.piece
    return [Case(probe, partial(watch, probe, folder), CASE_S + 5) for probe in probes]


def ncu(probe: str, folder: Path) -> Result:
    """All sections of the second launch, which loads no code, at the clocks that the card has by itself."""
    report = folder / f"{file_name(probe)}.ncu-rep"
    how = ["--clock-control", "none", "--set", "full", "--launch-skip", "1", "--launch-count", "1"]
    return watched(
        "ncu",
        [*how, "--kernel-name", f"regex:{KERNELS[probe]}", "--export", str(report), "--force-overwrite"],
        probe,
        more={},
    ) | _pages(report)


def _pages(report: Path) -> dict[str, str]:
    """What the report says, in words."""
    if not report.exists():
        return {}
    told = subprocess.run([str(tool("ncu")), "--import", str(report)], capture_output=True, text=True, timeout=20)
    return {"details": told.stdout[:LONGEST_TEXT]}


def sanitizer(probe: str, folder: Path) -> Result:
    """Every access of every launch. torch's allocator would hide what lies just outside of a tensor."""
    how = ["--tool", "memcheck", "--error-exitcode", str(ERRORS_FOUND)]
    found = watched("compute-sanitizer", how, probe, more={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    if found["code"] == ERRORS_FOUND:
        raise AssertionError(f"memcheck found errors: {found['output']}")
    return found


def watched(name: str, arguments: Sequence[str], probe: str, *, more: dict[str, str]) -> dict[str, object]:
    """The probe under a tool. Raises LacksError where the tool is not here, or may not look."""
    path = tool(name)
    if path is None:
        raise LacksError(f"{name} is not here")
    command = [path, *arguments, sys.executable, "-m", "tools.gpu.pieces.probe", probe]
    done = subprocess.run(
        command,
        env=os.environ | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=CASE_S,
    )
    if "ERR_NVGPUCTRPERM" in done.stdout:
        raise LacksError(f"{name} may not read this card's counters")
    if done.returncode not in (0, ERRORS_FOUND):
        raise RuntimeError(f"{name} exited with {done.returncode}: {done.stdout[-LONGEST_TEXT:]}")
    return {
        "command": " ".join(command[1:]),
        "launches": LAUNCHES,
        "code": done.returncode,
        "output": done.stdout[-LONGEST_TEXT:],
    }


if __name__ == "__main__":
    sys.exit(serve(cases))
