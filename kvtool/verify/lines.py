"""Lines of a log, whatever wrote them: colours and binary junk taken out, a bounded length, the file read once."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from kvtool.system.errors import KvtoolError
from kvtool.system.files import reading

_COLOUR = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_LONGEST_LINE = 1 << 15  # a config line is some 10 kB; a binary file may have no line end at all
_NEXT_LINES = 2  # how many lines a message may be broken over, after its first


def read_lines(name: str) -> Iterator[str]:
    """Lines of a file, `-` for standard input. Raises KvtoolError when it cannot be read."""
    if name == "-":
        yield from _lines(sys.stdin.buffer)
        return
    try:
        with reading(name), Path(name).open("rb") as file:
            yield from _lines(file)
    except ValueError as error:  # a null byte in the name
        raise KvtoolError(f"cannot read {name}: {error}") from error


def _lines(file: BinaryIO) -> Iterator[str]:
    while line := file.readline(_LONGEST_LINE):
        yield line.decode("utf-8", errors="replace").rstrip("\r\n")


def windows(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each line, cleaned, with the text of the next lines after it: terminals break long messages."""
    waiting: deque[str] = deque()
    for line in lines:
        waiting.append(clean(line))
        if len(waiting) > _NEXT_LINES:
            yield waiting.popleft(), " ".join(waiting)
    while waiting:
        yield waiting.popleft(), " ".join(waiting)


def clean(line: str) -> str:
    """The line without colours and control characters."""
    if not line.isprintable():
        line = _UNPRINTABLE.sub("", _COLOUR.sub("", line))
    return line
