"""Which loops a replay takes on this machine."""

from __future__ import annotations

from functools import cache

from kvtool.replay.loops.core import Core
from kvtool.replay.loops.native import native
from kvtool.replay.loops.twin import PythonCore


@cache
def core() -> Core:
    """The loops in C, built now if this machine has not built them before, else those in Python."""
    return native() or PythonCore()
