"""Random prompts that share exactly what they are asked to share, and nothing by accident.

Two prompts share a cached page only when they agree from its first token, so different first tokens rule a hit out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from kvtool.system.errors import KvtoolError


@dataclass(frozen=True, slots=True)
class Request:
    """One request: its prompt, how many tokens it generates, and when it arrives after the start of the run."""

    prompt_ids: tuple[int, ...]
    output_len: int
    arrival_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Run `priming` first: then `cached_len` tokens of each request are cached, which is `hit_rate` of its prompt.

    `priming` is None when nothing is to be cached. `hit_rate` is what whole pages allow of the rate asked for.
    """

    priming: Request | None
    requests: list[Request]
    cached_len: int
    hit_rate: float


def fixed(*, batch_size: int, input_len: int, output_len: int, vocab_size: int, seed: int) -> list[Request]:
    """`batch_size` prompts of `input_len` random tokens; no two share their first token.

    Runs with different seeds may share it: give each iteration its own seed and reset the cache between them.
    """
    _require(batch_size=batch_size, input_len=input_len, output_len=output_len)
    rng = random.Random(f"prompts {seed}")
    first_tokens = distinct_tokens(rng, batch_size, vocab_size)
    return [Request(_continued((token,), input_len, vocab_size, rng), output_len) for token in first_tokens]


def shared_prefix(
    *, num_requests: int, input_len: int, output_len: int, hit_rate: float, block_size: int, vocab_size: int, seed: int
) -> SharedPrefix:
    """Prompts of `input_len` tokens of which the first `hit_rate`, to the nearest whole page, is common and cached.

    At least the last token of a prompt is always computed, so a hit rate of 1 gives all whole pages before it.
    """
    _require(num_requests=num_requests, input_len=input_len, output_len=output_len, block_size=block_size)
    if not 0 <= hit_rate <= 1:
        raise KvtoolError(f"hit rate {hit_rate} must be from 0 to 1, as 0.5")
    rng = random.Random(f"shared prefix {seed}")
    cached_pages = min(round(hit_rate * input_len / block_size), (input_len - 1) // block_size)
    cached_len = cached_pages * block_size
    prefix = random_tokens(rng, cached_len, vocab_size)
    own_tokens = distinct_tokens(rng, num_requests + 1, vocab_size)
    requests = [
        Request(_continued((*prefix, token), input_len, vocab_size, rng), output_len) for token in own_tokens[1:]
    ]
    priming = Request((*prefix, own_tokens[0]), output_len=1) if cached_len else None
    return SharedPrefix(priming, requests, cached_len, hit_rate=cached_len / input_len)


def random_tokens(rng: random.Random, count: int, vocab_size: int) -> tuple[int, ...]:
    """`count` tokens, each as likely as any other."""
    return tuple(rng.choices(range(vocab_size), k=count))


def _continued(start: tuple[int, ...], length: int, vocab_size: int, rng: random.Random) -> tuple[int, ...]:
    """`start`, filled up with random tokens."""
    return start + random_tokens(rng, length - len(start), vocab_size)


def distinct_tokens(rng: random.Random, count: int, vocab_size: int) -> list[int]:
    """`count` tokens, no two the same. Raises KvtoolError where the vocabulary has fewer."""
    if count > vocab_size:
        raise KvtoolError(f"{count} prompts cannot all begin differently with a vocabulary of {vocab_size} tokens")
    return rng.sample(range(vocab_size), count)


def _require(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise KvtoolError(f"{name.replace('_', ' ')} {value} must be at least 1")
