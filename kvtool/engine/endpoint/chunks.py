"""The body of a response out of what one read of its socket brings: many chunks in a read, or a part of one.

http.client reads each chunk in three reads, each with a time limit of its own; a stream has a chunk a token.
"""

from __future__ import annotations

from functools import lru_cache
from http.client import HTTPException

LONGEST_LINE = 1 << 12  # of a chunk's size with what may stand behind it, or of a field behind the last chunk
DIGITS = b"0123456789abcdefABCDEF"


class Chunks:
    """Chunked transfer coding (RFC 9112, section 7.1), taken piece by piece; what sizes are extended by, and fields
    behind the last chunk, are left out. `ended` once all of it was there."""

    def __init__(self) -> None:
        self.ended = False
        self._rest = b""  # a line that is not whole
        self._left = 0  # bytes of the chunk in hand
        self._closes = False  # the next line is the end of a chunk
        self._is_last = False  # fields stand where the next chunk would

    def take(self, raw: bytes) -> bytes:
        """What of the body is in it. Raises HTTPException for what is no chunk."""
        raw, at = self._rest + raw, 0
        body: list[bytes] = []
        while at < len(raw) and not self.ended:
            if self._left:
                body.append(raw[at : at + self._left])
                at += len(body[-1])
                self._left -= len(body[-1])
                continue
            end = raw.find(b"\n", at)
            if end < 0:
                break
            line, at = raw[at:end].rstrip(b"\r"), end + 1
            if self._is_last or self._closes:
                self._end(line)
                continue
            size = size_of(line)
            stop = at + size
            if size and raw[stop : stop + 2] == b"\r\n":  # whole, as most are
                body.append(raw[at:stop])
                at = stop + 2
            else:
                self._left, self._closes, self._is_last = size, size > 0, not size
        self._rest = raw[at:]
        if len(self._rest) > LONGEST_LINE:
            raise HTTPException("a line between chunks has no end")
        return b"".join(body)

    def _end(self, line: bytes) -> None:
        """Of a chunk, or of the body behind the fields that the last one may have."""
        if self._closes and line:
            raise HTTPException("a chunk is longer than it says")
        self.ended, self._closes = self._is_last and not line, False


@lru_cache(maxsize=256)
def size_of(line: bytes) -> int:
    """The bytes of a chunk. Raises HTTPException for a line that says none."""
    size = line.partition(b";")[0].strip()
    if not size or size.strip(DIGITS) or len(size) > 16:
        raise HTTPException(f"{line[:40]!r} is no size of a chunk")
    return int(size, 16)
