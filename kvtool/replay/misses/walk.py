"""A prompt walked beside an earlier one that is like it: each difference named, and what would be shared behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvtool.replay.misses.causes import STEPS
from kvtool.replay.misses.differences import left_out, meets_again, reordered, shared_length

MOST_DIFFERENCES = 2000
SHOWN = 48
TOOL_MARKS = ('"function"', '"parameters"', '"input_schema"')


@dataclass(frozen=True, slots=True)
class Difference:
    """What parts two prompts at `start` of the later one, and the characters from `resumes` to `stop` that they would
    share but for it. `was` and `became` are shown to people.
    """

    kind: str
    start: int
    resumes: int
    stop: int
    was: str
    became: str


def differences(a: str, b: str, least: int) -> Iterator[Difference]:
    """From the first on, for as long as each has a name. What is left out, put in or changed counts where they agree
    for `least` characters behind it.
    """
    i = j = shared_length(a, b)
    for _ in range(MOST_DIFFERENCES):
        if i >= len(a) or j >= len(b):
            return
        found = _stepped(a, b, i, j) or _moved(a, b, i, j, least)
        if found is None:
            return
        kind, resumes, (next_i, next_j) = found
        run = shared_length(a, b, next_i, next_j)
        yield Difference(kind, j, resumes, next_j + run, _shown(a, i, next_i), _shown(b, j, next_j))
        i, j = next_i + run, next_j + run


def _stepped(a: str, b: str, i: int, j: int) -> tuple[str, int, tuple[int, int]] | None:
    """The first cause whose step leads over the difference."""
    for kind, step in STEPS.items():
        places = step(a, b, i, j)
        if places is not None and places[0] >= i and places[1] >= j and places != (i, j):
            return kind, places[1], places
    return None


def _moved(a: str, b: str, i: int, j: int, least: int) -> tuple[str, int, tuple[int, int]] | None:
    """Text in another order, left out, put in, or changed: where they go on."""
    ends = reordered(a, b, i, j)
    if ends is not None:
        tools = any(mark in a[max(0, i - 200) : ends[0]] for mark in TOOL_MARKS)
        return ("tools_order" if tools else "documents_order"), j, ends
    further = left_out(a, b, i, j)
    if further is not None and shared_length(a, b, further, j) >= least:
        return "truncated_history", j, (further, j)
    further = left_out(b, a, j, i)
    if further is not None and shared_length(a, b, i, further) >= least:
        return "inserted_text", further, (i, further)
    meeting = meets_again(a, b, i, j)
    if meeting is not None and shared_length(a, b, *meeting) >= least:
        return "changed_text", meeting[1], meeting
    return None


def _shown(text: str, start: int, stop: int) -> str:
    """The words about a difference, at most SHOWN characters of them."""
    start = max(text.rfind(" ", 0, start) + 1, start - SHOWN // 2)
    return text[start : min(max(stop, start + 1), start + SHOWN)]
