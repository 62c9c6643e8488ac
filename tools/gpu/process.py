"""A child process with a group and a log of its own, which ends with all that it started, whatever state it is in."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
GRACE_S = 4.0  # to say what was under way, after Ctrl-C
KILLED_S = 3.0  # a process that hangs in the driver does not even end then: it is left behind

Wait = Callable[["subprocess.Popen[bytes]", float], int]


@dataclass(frozen=True)
class Ended:
    """`code` is None of a process that outlasted its time; `gone` is False where even killing it did not end it."""

    code: int | None
    gone: bool = True

    @property
    def words(self) -> str:
        """How it ended."""
        if self.code is None:
            return "ran out of time" if self.gone else "ran out of time and could not be killed"
        if self.code < 0:
            with suppress(ValueError):
                return f"died by {signal.Signals(-self.code).name}"
        return f"exited with {self.code}"


def run_process(
    command: Sequence[str], *, log: Path, limit_s: float, more: Mapping[str, str], wait: Wait = subprocess.Popen.wait
) -> Ended:
    """Run it in the checkout, whether or not kvtool is installed. `more` goes into its environment; `wait` raises
    TimeoutExpired where its time is over. Raises OSError where it cannot be started."""
    with log_file(log) as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": python_path(), "PYTHONUNBUFFERED": "1"} | dict(more),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        return Ended(wait(process, limit_s))
    except subprocess.TimeoutExpired:
        return Ended(None, gone=stopped(process, wait))
    except BaseException:
        _signal_group(process, signal.SIGKILL)
        process.wait(KILLED_S)
        raise
    finally:
        _signal_group(process, signal.SIGKILL)  # whoever it started and left


def log_file(path: Path) -> IO[bytes]:
    """Where output goes; nowhere on a disk that has no room for a new file."""
    try:
        return path.open("ab")
    except OSError:
        return open(os.devnull, "ab")


def python_path() -> str:
    """The checkout before what the machine has."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def stopped(process: subprocess.Popen[bytes], wait: Wait = subprocess.Popen.wait) -> bool:
    """Ctrl-C for its group, and after GRACE_S the end; whether it is gone."""
    for number, seconds in ((signal.SIGINT, GRACE_S), (signal.SIGKILL, KILLED_S)):
        _signal_group(process, number)
        with suppress(subprocess.TimeoutExpired):
            wait(process, seconds)
            return True
    return False


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    """It leads its group, whose id is its own and stays while anybody is in it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
