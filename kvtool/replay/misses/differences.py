"""Where two texts part, and where they meet again."""

from __future__ import annotations

from collections import Counter

PIECE = 4096
ANCHOR = 24  # characters in a row that are no coincidence
WINDOW = 2048  # within which texts meet again after a replaced piece
FAR_ANCHOR = 64
MOST_LINES = 4096


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
    """Where in each the lines end that both have from those of `a[i]` and `b[j]` on, in another order; None where they
    have none.
    """
    start_a, start_b = a.rfind("\n", 0, i) + 1, b.rfind("\n", 0, j) + 1
    open_lines: Counter[str] = Counter()
    end_a, end_b = start_a, start_b
    for _ in range(MOST_LINES):
        line_a, next_a = _line(a, end_a)
        line_b, next_b = _line(b, end_b)
        if line_a is None or line_b is None:
            return None
        end_a, end_b = next_a, next_b
        for line, step in ((line_a, 1), (line_b, -1)):
            open_lines[line] += step
            if not open_lines[line]:
                del open_lines[line]
        if not open_lines:
            return end_a, end_b
    return None


def _line(text: str, start: int) -> tuple[str | None, int]:
    """The line from `start` on without the commas that part a list, and where the next one begins; None at the end."""
    if start >= len(text):
        return None, start
    end = text.find("\n", start)
    end = len(text) if end < 0 else end
    return text[start:end].rstrip(", "), end + 1
