"""Server-sent events out of pieces: which data came, and when the last of its bytes did."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Event = tuple[float, bytes]
"""Seconds, and the data of its lines."""


def events(pieces: Iterable[tuple[float, bytes]]) -> Iterator[Event]:
    """Each event that has data, at the time of the piece that ended it; the last one may lack its empty line. A line
    ends in a line feed, with or without a carriage return; comments and other fields are left out."""
    rest, data, time_s = b"", list[bytes](), 0.0
    for time_s, piece in pieces:
        lines = (rest + piece).replace(b"\r\n", b"\n").split(b"\n")
        rest = lines.pop()
        for line in lines:
            if line.strip(b"\r"):
                data += _data(line)
            elif data:
                yield time_s, b"\n".join(data)
                data = []
    data += _data(rest)
    if data:
        yield time_s, b"\n".join(data)


def _data(line: bytes) -> list[bytes]:
    """What stands behind `data:`, less one blank; nothing of any other line."""
    name, colon, value = line.rstrip(b"\r").partition(b":")
    return [value.removeprefix(b" ")] if name == b"data" and colon else []
