"""Who shares which cached pages: the runs of pages that prompts have in common, as a tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple


class SharedRun(NamedTuple):
    """Pages one behind the other that the same prompts begin with. `first_page` of each of them is the run's first,
    `depth` the number of runs before it."""

    depth: int
    first_page: int
    pages: list[int]
    prompts: list[int]


def shared_runs(pages_of: Mapping[int, Sequence[int]]) -> list[SharedRun]:
    """The runs of all prompts, each behind the one that it continues; `pages_of` a prompt are its cached ones."""
    return list(_runs(pages_of, 0, 0))


def _runs(pages_of: Mapping[int, Sequence[int]], start: int, depth: int) -> Iterator[SharedRun]:
    """Those that begin at the page number `start` of prompts that are the same before it."""
    groups: dict[int, list[int]] = {}
    for prompt, pages in pages_of.items():
        if start < len(pages):
            groups.setdefault(pages[start], []).append(prompt)
    for prompts in groups.values():
        own = {prompt: pages_of[prompt] for prompt in prompts}
        stop = start + 1
        while len({page for pages in own.values() for page in pages[stop : stop + 1]}) == 1 and all(
            len(pages) > stop for pages in own.values()
        ):
            stop += 1
        yield SharedRun(depth, start, [*own[prompts[0]][start:stop]], prompts)
        yield from _runs(own, stop, depth + 1)
