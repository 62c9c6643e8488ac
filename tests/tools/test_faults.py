"""Runs that are killed or harmed cost time and never a token; `python tools/faults.py` does so two hundred times."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tools.faults import KINDS

ROOT = Path(__file__).parents[2]


def test_every_fault_is_survived() -> None:
    """In a process of its own, which forks the runs that it kills."""
    faults = 2 * len(KINDS)
    command = [sys.executable, "-W", "ignore", "tools/faults.py", str(faults), "11"]
    done = subprocess.run(command, cwd=ROOT, env={"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == f"{faults} faults: no wrong token, no crash, no warning twice"
    counts = {line[:16].strip(): [int(cell.replace(",", "")) for cell in line[16:].split()] for line in lines[1:-1]}
    assert {kind: runs for kind, (runs, _, _) in counts.items()} == dict.fromkeys(KINDS, 2)
    warned = {kind: warned for kind, (_, warned, _) in counts.items()}
    assert warned.pop("killed") == 0, "what a killed run left is whole, or was never there"
    assert min(warned.values()) > 0
    assert counts["killed"][2] > 0, "what was whole is found again"
