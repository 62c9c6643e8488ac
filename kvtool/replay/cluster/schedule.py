"""Which node prefills a request, which one decodes it, and which of them reads its prefix (DualPath, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

DECODE_SLACK = 1.05
READ_S, COMPUTE_S = 3.0, 5.0  # a short read queue holds 3 s of reading; a node has 5 s of tokens at most


@dataclass(slots=True, eq=False)
class Node:
    """What a node has in hand: requests and their tokens, and the tokens that wait to be read from storage."""

    index: int
    requests: int = 0
    tokens: int = 0
    read_tokens: int = 0


def choose_prefill(nodes: Sequence[Node], *, short_queue_tokens: float, most_tokens: float) -> Node | None:
    """The node with the fewest tokens of those with a short read queue, else of those that are not overloaded.

    None where all are: the request waits. An idle node is never overloaded.
    """
    able = [node for node in nodes if node.tokens <= most_tokens]
    short = [node for node in able if node.read_tokens <= short_queue_tokens]
    return min(short or able, key=lambda node: (node.tokens, node.index), default=None)


def choose_decode(nodes: Sequence[Node], tokens: int) -> Node:
    """Of the nodes that stay near the mean of tokens, the one with the fewest requests; else with the fewest tokens."""
    most = DECODE_SLACK * (tokens + sum(node.tokens for node in nodes)) / len(nodes)
    near = [node for node in nodes if node.tokens + tokens <= most]
    if near:
        return min(near, key=lambda node: (node.requests, node.tokens, node.index))
    return min(nodes, key=lambda node: (node.tokens, node.index))


def reading_side(mode: str, prefill: Node, decode: Node) -> str:
    """basic: always the prefill node; dualpath: the one with the shorter read queue."""
    return "decode" if mode == "dualpath" and decode.read_tokens < prefill.read_tokens else "prefill"
