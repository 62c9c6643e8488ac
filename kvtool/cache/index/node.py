"""A run of cached pages: what the radix tree is made of, and all that an eviction policy may know of it."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

DEFAULT_PRIORITY = 35  # of 0 to 100, as in TensorRT-LLM


@dataclass(eq=False, slots=True)
class Node:
    """A run of pages below `parent` that were added and hit together, so that one count serves all of them.

    - tokens, pages: what the run holds, packed, and where it lies.
    - locks: sequences that stand on this node or below it; hits: those that found it cached.
    - created, last_used: the how manieth addition it was, and the how manieth return it was given back with.
    - sharers: prefixes that were ever told apart at or below it.
    - reach_pages: how long the last prefix was that went through it, from its start.
    - priority, expires_s: how much the last request that said so wants it kept, and until when.
    - children: by the packed tokens of their first page.
    """

    tokens: array[int]
    pages: array[int]
    parent: Node | None
    locks: int = 0
    hits: int = 0
    created: int = 0
    last_used: int = 0
    sharers: int = 1
    reach_pages: int = 0
    priority: int = DEFAULT_PRIORITY
    expires_s: float = inf
    children: dict[bytes, Node] = field(default_factory=dict)

    @property
    def depth_pages(self) -> int:
        """Pages from the start of the prefix to the end of this run."""
        return sum(len(member.pages) for member in path(self))


def path(node: Node) -> Iterator[Node]:
    """`node` and its ancestors, without the root."""
    while node.parent is not None:
        yield node
        node = node.parent
