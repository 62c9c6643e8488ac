"""Which node prefills a request, which one decodes it, and which of them reads its prefix (DualPath, section 5, and
other ways to route).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

DECODE_SLACK = 1.05
READ_S, COMPUTE_S = 3.0, 5.0  # a short read queue holds 3 s of reading; a node has 5 s of tokens at most


@dataclass(slots=True, eq=False)
class Node:
    """What a node has in hand: requests and their tokens, and the tokens that wait to be read from storage. Its host
    memory keeps prompts of `room_tokens`, each the last of its session, those longest unused going first.
    """

    index: int
    requests: int = 0
    tokens: int = 0
    read_tokens: int = 0
    room_tokens: float = 0.0
    held: OrderedDict[int, int] = field(default_factory=OrderedDict)

    def hold(self, session: int, tokens: int) -> None:
        """Keep a prompt in the place of the session's last."""
        self.held[session] = tokens
        self.held.move_to_end(session)
        while sum(self.held.values()) > self.room_tokens:
            self.held.popitem(last=False)


def choose_prefill(nodes: Sequence[Node], *, short_queue_tokens: float, most_tokens: float) -> Node | None:
    """The node with the fewest tokens of those with a short read queue, else of those that are not overloaded.

    None where all are: the request waits. An idle node is never overloaded.
    """
    able = [node for node in nodes if node.tokens <= most_tokens]
    short = [node for node in able if node.read_tokens <= short_queue_tokens]
    return min(short or able, key=lambda node: (node.tokens, node.index), default=None)


ROUTING = ("dualpath", "round-robin", "least-loaded", "cache-aware", "session-sticky")


class Router:
    """One way to choose prefill nodes. All but `session-sticky`, which stays where a session began, leave out nodes
    that are overloaded.
    """

    def __init__(self, name: str, nodes: Sequence[Node], *, short_queue_tokens: float, most_tokens: float) -> None:
        self._name, self._nodes = name, nodes
        self._short_queue, self._most = short_queue_tokens, most_tokens
        self._turn = 0
        self._of_session: dict[int, Node] = {}

    def choose(self, session: int) -> Node | None:
        """The node for a request of that session; None where it has to wait."""
        if self._name == "session-sticky":
            least = min(self._nodes, key=lambda node: (node.tokens, node.index))
            return self._of_session.setdefault(session, least)
        able = [node for node in self._nodes if node.tokens <= self._most]
        if not able:
            return None
        match self._name:
            case "round-robin":
                self._turn += 1
                first = (self._turn - 1) % len(self._nodes)
                return min(able, key=lambda node: (node.index - first) % len(self._nodes))
            case "least-loaded":
                return min(able, key=lambda node: (node.tokens, node.index))
            case "cache-aware":
                return min(able, key=lambda node: (-node.held.get(session, 0), node.tokens, node.index))
        return choose_prefill(self._nodes, short_queue_tokens=self._short_queue, most_tokens=self._most)


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
