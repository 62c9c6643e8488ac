"""A run of cached pages: what an index of prefixes is made of, and all that an eviction policy may know of it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

PageKey = Hashable  # what one whole page holds: its token ids, or the hash that a trace has for them


@dataclass(eq=False, slots=True)
class Node:
    """A run of pages below `parent` that were added and hit together, so that one count serves all of them.

    `locks` counts the sequences that stand on this node or below it, `hits` those that found it cached. `created` and
    `last_used` are ticks of the index: when the run was added, and when it lost its last lock.
    """

    keys: list[PageKey]
    pages: list[int]
    parent: Node | None
    locks: int = 0
    hits: int = 0
    created: int = 0
    last_used: int = 0
    children: dict[PageKey, Node] = field(default_factory=dict)

    @property
    def depth_pages(self) -> int:
        """Pages from the start of the prefix to the end of this run."""
        return sum(len(member.pages) for member in path(self))


def path(node: Node) -> Iterator[Node]:
    """`node` and its ancestors, without the root."""
    while node.parent is not None:
        yield node
        node = node.parent
