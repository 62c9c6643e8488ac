"""Where two texts part, and where they meet again."""

from __future__ import annotations

import re
from collections import Counter

PIECE = 4096
ANCHOR = 24  # characters in a row that are no coincidence
WINDOW = 2048  # within which texts meet again after a replaced piece
FAR_ANCHOR = 64
MOST_PIECES = 2048
LINES, SENTENCES = re.compile(r"[^\n]*\n?"), re.compile(r"[^.!?}:\n]*[.!?}:\n]?\s*")
BETWEEN = " ,[]\n\r"  # what parts the items of a list, which go by place


def shared_length(a: str, b: str, i: int = 0, j: int = 0) -> int:
    """Characters that agree from `a[i:]` and `b[j:]` on."""
    length = 0
    while (left := a[i + length : i + length + PIECE]) == (right := b[j + length : j + length + PIECE]) and left:
        length += len(left)
    shorter = min(len(left), len(right))
    return length + next((place for place in range(shorter) if left[place] != right[place]), shorter)


def meets_again(a: str, b: str, i: int, j: int) -> tuple[int, int] | None:
    """Where texts that part at `a[i]` and `b[j]` agree again for ANCHOR characters: the nearest places in each."""
    seen: dict[str, int] = {}
    for step in range(min(WINDOW, len(a) - i - ANCHOR + 1)):
        seen.setdefault(a[i + step : i + step + ANCHOR], step)
    best: tuple[int, int] | None = None
    for step in range(min(WINDOW, len(b) - j - ANCHOR + 1)):
        if best is not None and step >= sum(best):
            break
        found = seen.get(b[j + step : j + step + ANCHOR])
        if found is not None and (best is None or found + step < sum(best)):
            best = found, step
    return None if best is None else (i + best[0], j + best[1])


def left_out(a: str, b: str, i: int, j: int) -> int | None:
    """Where `b[j:]` goes on in `a` behind a piece from `a[i]` on that it does not have; None where it does not."""
    anchor = b[j : j + FAR_ANCHOR]
    place = a.find(anchor, i + 1) if len(anchor) == FAR_ANCHOR else -1
    return None if place < 0 else place


def reordered(a: str, b: str, i: int, j: int) -> tuple[int, int] | None:
    """Where in each the lines end, or else the sentences, that both have from those of `a[i]` and `b[j]` on, in another
    order; None where they have none.
    """
    for ends, pattern in ((("\n",), LINES), (tuple(".!?}:\n"), SENTENCES)):
        back = min(i - _start(a, i, ends), j - _start(b, j, ends))
        found = _balanced(a, b, i - back, j - back, pattern)
        if found is not None:
            return found
    return None


def _start(text: str, at: int, ends: tuple[str, ...]) -> int:
    """Where the piece begins that holds `text[at]`."""
    return max(text.rfind(end, 0, at) for end in ends) + 1


def _balanced(a: str, b: str, i: int, j: int, pattern: re.Pattern[str]) -> tuple[int, int] | None:
    """Where the pieces from `a[i]` and `b[j]` on are for the first time the same ones, more than one."""
    left: Counter[str] = Counter()
    for number in range(MOST_PIECES):
        if i >= len(a) or j >= len(b):
            return None
        for text, start, step in ((a, i, 1), (b, j, -1)):
            match = pattern.match(text, start)
            assert match is not None
            piece = match[0].strip(BETWEEN)
            left[piece] += step
            if not left[piece]:
                del left[piece]
            i, j = (match.end(), j) if step == 1 else (i, match.end())
        if not left:
            return (i, j) if number else None  # the same piece in both, between other signs: no order
    return None
