"""The tree of the pages that prompts of `kvtool generate` left in the cache, as lines."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from kvtool.results import CachedPages, GenerateDocument


def cache_lines(document: GenerateDocument) -> list[str]:
    """A line for all, then one a run of pages, under the run that it continues."""
    runs = document.cache
    if not runs:
        return ["no whole page was cached"]
    block_size = document.inputs["block_size"]
    count, shared = (sum(len(run.pages) for run in kept) for kept in (runs, [r for r in runs if len(r.prompts) > 1]))
    found = " + ".join(str(sequence.cached_tokens) for sequence in document.sequences)
    head = f"{count} cached pages of {block_size} tokens, {shared} shared; prompt tokens found: {found}"
    return [head, *(f"{branch(runs, place)}{described(run)}" for place, run in enumerate(runs))]


def branch(runs: Sequence[CachedPages], place: int) -> str:
    """What joins a run to the one above it: a corner for the last below it, a bar where others follow."""
    return "".join(
        ("├─ " if own else "│  ") if goes_on(runs, place, depth) else ("└─ " if own else "   ")
        for depth in range(runs[place].depth + 1)
        for own in (depth == runs[place].depth,)
    )


def goes_on(runs: Sequence[CachedPages], place: int, depth: int) -> bool:
    """Whether another run of that depth follows under the same one."""
    later = next((run.depth for run in runs[place + 1 :] if run.depth <= depth), None)
    return later == depth


def described(run: CachedPages) -> str:
    """`pages 0-3, tokens 0-63: prompts 1, 2`."""
    who = f"prompt{'s' if len(run.prompts) > 1 else ''} {', '.join(str(prompt + 1) for prompt in run.prompts)}"
    pages = f"page{'s' if len(run.pages) > 1 else ''} {stretches(run.pages)}"
    return f"{pages}, tokens {run.first_token}-{run.first_token + run.tokens - 1}: {who}"


def stretches(pages: Sequence[int]) -> str:
    """`0-3, 7`: neighbours together."""
    groups = (list(group) for _, group in groupby(enumerate(pages), key=lambda pair: pair[1] - pair[0]))
    ends = ((group[0][1], group[-1][1]) for group in groups)
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)
