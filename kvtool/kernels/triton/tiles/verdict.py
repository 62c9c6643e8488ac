"""Which of several equal ways is the fastest: timed once, remembered in memory and in a file."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import TypeVar

from kvtool.system.errors import KvtoolError
from kvtool.system.files import write_atomic

MARGIN = 0.02  # by which a way must beat the first one, which is the safest, to be taken
VERSION = 1
ROUNDS = 15

Way = Callable[[], object]
T = TypeVar("T")


class Verdicts:
    """The fastest way of each question. `timer` gives the milliseconds of one call; `file` may be missing, damaged or
    in a folder that cannot be written: then what it would have said is timed again. Beside each verdict it has the
    times of all ways, which nothing but a reader asks for."""

    def __init__(self, file: Path, timer: Callable[[Way], float]) -> None:
        self._file, self._timer = file, timer
        self._known: dict[str, str] | None = None
        self._times_ms: dict[str, dict[str, float | None]] = {}

    def fastest(self, question: str, ways: Mapping[str, Way], *, may_time: bool) -> str:
        """A name out of `ways`: as remembered, else by timing each, else, where that is not allowed now, the first."""
        if self._known is None:
            self._known = _read(self._file, "verdicts", str)
        known = self._known.get(question)
        if known is not None and known in ways:
            return known
        if not may_time:
            return next(iter(ways))
        times = self._timed(ways)
        self._known[question] = _winner(times)
        self._times_ms[question] = {name: time if math.isfinite(time) else None for name, time in times.items()}
        self._write(self._known)
        return self._known[question]

    def _timed(self, ways: Mapping[str, Way]) -> dict[str, float]:
        """In turns, so that a clock that moves is nobody's gain; the first round compiles, and does not count."""
        rounds = [{name: self._timer(way) for name, way in ways.items()} for _ in range(1 + ROUNDS)]
        return {name: median(found[name] for found in rounds[1:]) for name in ways}

    def _write(self, known: dict[str, str]) -> None:
        """What other processes have found meanwhile stays; the file changes whole or not at all."""
        everything = {
            "version": VERSION,
            "verdicts": _read(self._file, "verdicts", str) | known,
            "times_ms": _read(self._file, "times_ms", dict) | self._times_ms,
        }
        with contextlib.suppress(KvtoolError):  # it will be timed again
            write_atomic(self._file, json.dumps(everything, indent=1, sort_keys=True).encode())


def _winner(times: Mapping[str, float]) -> str:
    """The fastest, where it clearly beats the first."""
    first, best = next(iter(times)), min(times, key=times.__getitem__)
    return best if times[best] < times[first] * (1 - MARGIN) else first


def _read(file: Path, part: str, kind: type[T]) -> dict[str, T]:
    """The entries of one part of the file that are of that kind."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    entries = found.get(part) if isinstance(found, dict) and found.get("version") == VERSION else None
    if not isinstance(entries, dict):
        return {}
    return {question: entry for question, entry in entries.items() if isinstance(entry, kind)}
