"""Bytes that ranks send each other, by formula: collectives, the ring of context parallelism, a decoder's step.

All counts are those of one rank that sends, of payload alone. Source of the ring: Llama 3 context parallelism,
arXiv 2411.01783, tables 2 and 3; of collectives: the ring algorithms of reduce-scatter and all-gather.
"""

from __future__ import annotations

from dataclasses import dataclass

COLLECTIVE_S = 10e-6
"""That a collective among the GPUs of a node takes beside its bytes: stated, not measured."""
EXCHANGE_BYTES = 2**16
"""Up to this size a sum is made by everybody telling everybody, in one hop; beyond, by a ring, which sends less."""


@dataclass(frozen=True, slots=True)
class Link:
    """Between ranks: `alpha_s` of an exchange, or of a step of a ring, beside its bytes."""

    bytes_per_s: float
    alpha_s: float

    def takes_s(self, num_bytes: float, times: int = 1) -> float:
        """Of so many bytes that a rank sends in so many exchanges."""
        return times * self.alpha_s + num_bytes / self.bytes_per_s


def all_reduce_bytes(size_bytes: int, ranks: int) -> float:
    """Of a tensor that all ranks have and that is summed."""
    if size_bytes <= EXCHANGE_BYTES:
        return float((ranks - 1) * size_bytes)
    return 2 * (ranks - 1) / ranks * size_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RingShape:
    """Attention of one layer over shared tokens: a rank's heads, elements of a key and of a value, bytes of an element.

    A latent is key and value at once, and goes round once: its value takes no elements of its own.
    """

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    out_dim: int
    element_bytes: int

    @property
    def kv_token_bytes(self) -> int:
        """Key and value of a token, as pass-KV sends them."""
        return self.kv_heads * (self.key_dim + self.value_dim) * self.element_bytes

    @property
    def query_token_bytes(self) -> int:
        """Query of a token, as pass-Q sends it."""
        return self.heads * self.key_dim * self.element_bytes

    @property
    def answer_token_bytes(self) -> int:
        """Partial output of a token and its log-sum-exp in fp32, which pass-Q sends back."""
        return self.heads * (self.out_dim + 1) * 4


def pass_kv_bytes(shape: RingShape, kv_tokens: list[int], member: int) -> int:
    """Sent by `member`: the tokens of each shard go on, but for the block that has come all the way round."""
    count = len(kv_tokens)
    return sum(kv_tokens[(member - step) % count] for step in range(count - 1)) * shape.kv_token_bytes


def pass_q_bytes(shape: RingShape, query_tokens: list[int], member: int) -> int:
    """Sent by `member`: the queries that go on, and an answer to every query that is not its own."""
    count = len(query_tokens)
    on = sum(query_tokens[(member - step) % count] for step in range(count - 1)) * shape.query_token_bytes
    visiting = sum(tokens for place, tokens in enumerate(query_tokens) if place != member)
    return on + visiting * shape.answer_token_bytes


def passes_kv(shape: RingShape, kv_tokens: list[int], query_tokens: list[int], link: Link | None = None) -> bool:
    """Whether keys and values are fewer bytes to send than queries and their answers, over all ranks of the group; over
    a `link` that is known, whether the rank that sends the most has them sent sooner: answers are one exchange more.
    """
    members, steps = range(len(kv_tokens)), len(kv_tokens) - 1
    kv = [pass_kv_bytes(shape, kv_tokens, member) for member in members]
    queries = [pass_q_bytes(shape, query_tokens, member) for member in members]
    if link is None:
        return sum(kv) <= sum(queries)
    return link.takes_s(max(kv), steps) <= link.takes_s(max(queries), steps + 1)


def pass_kv_hit_rate(num_heads: int, kv_heads: int) -> float:
    """New tokens / all tokens from which pass-KV sends no more than the queries alone: 2 KV heads / heads (arXiv
    2411.01783, equation 2; 0.125 of Llama 3 405B)."""
    return 2 * kv_heads / num_heads
