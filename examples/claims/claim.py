"""A claim beside what kvtool says of it, and how a number that somebody said is judged."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import msgspec
from typer.testing import CliRunner

from kvtool.cli.app import app
from kvtool.results import SizeDocument, SizeRow

RIGHT, CLOSE, WRONG = "right", "close", "wrong"  # from best to worst
CLOSE_ENOUGH = 0.05
POWERS = {"KB": 1, "MB": 2, "GB": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """`found` is what kvtool says, `shown_by` the commands or calls that say it, `why` one sentence."""

    said: str
    found: str
    verdict: str
    why: str
    shown_by: tuple[str, ...]


def judge(said: str, found_bytes: int) -> str:
    """A size as people write it, `3.2 GB`, against a byte count: right where it rounds to the digits said, in units of
    1000 or of 1024; close within 5 % of either; wrong else.
    """
    number, unit = said.split()
    digits = len(number.partition(".")[2])
    readings = [found_bytes / base ** POWERS[unit] for base in (1000, 1024)]
    if any(f"{reading:.{digits}f}" == number for reading in readings):
        return RIGHT
    distance = min(abs(reading / float(number) - 1) for reading in readings)
    return CLOSE if distance <= CLOSE_ENOUGH else WRONG


def worst(*verdicts: str) -> str:
    """Of several verdicts on one claim."""
    return max(verdicts, key=(RIGHT, CLOSE, WRONG).index)


def kvtool(command: str) -> str:
    """Standard output of a kvtool command, run in this process. Exits where it is used wrongly."""
    name, *arguments = shlex.split(command)
    assert name == "kvtool", command
    done = CliRunner().invoke(app, arguments)
    if isinstance(done.exception, Exception) or done.exit_code not in (0, 1):  # 1: the answer is no
        raise SystemExit(f"{command!r}: {done.exception or done.output}")
    return done.stdout


def sizes(command: str) -> list[SizeRow]:
    """The rows of a `kvtool size` command."""
    return msgspec.json.decode(kvtool(f"{command} --json"), type=SizeDocument).rows
