"""Requests that begin alike: one system prompt for all (translation), the examples of a task (few-shot), or nothing."""

from __future__ import annotations

import random

from kvtool.workloads.prompts import distinct_tokens, random_tokens
from kvtool.workloads.scenarios.base import Plan, Shape, Turn, spread, unreachable

SYSTEM_SHARE = 3 / 4  # of the longest prompt, where the user does not say
EXAMPLES_SHARE = 7 / 8
TASKS = 2


def independent(shape: Shape) -> Plan:
    """Prompts that share nothing, not even their first token."""
    if shape.hit_rate:
        raise unreachable("independent", shape, "its prompts share nothing, so take 0 or another workload")
    return _shared(shape, "independent", groups=1, prefix_len=0)


def translation(shape: Shape) -> Plan:
    """One system prompt before the text of every request."""
    return _shared(shape, "translation", groups=1, prefix_len=_prefix_len(shape, SYSTEM_SHARE))


def few_shot(shape: Shape) -> Plan:
    """Two tasks in turns, each with examples of its own before every question."""
    groups = min(TASKS, shape.num_prompts)
    return _shared(shape, "few-shot", groups=groups, prefix_len=_prefix_len(shape, EXAMPLES_SHARE))


def _prefix_len(shape: Shape, share: float) -> int:
    """As asked for, else what makes the hit rate with prompts of `input_len`, else that share of them."""
    if shape.prefix_len is not None or shape.hit_rate is None:
        return shape.shared_len(share)
    return shape.shared_len(shape.hit_rate)


def _shared(shape: Shape, name: str, *, groups: int, prefix_len: int) -> Plan:
    rng = random.Random(f"{name} {shape.seed}")
    count, vocab = shape.num_prompts, shape.vocab_size
    starts = distinct_tokens(rng, groups, vocab) if prefix_len else []
    prefixes = [(start, *random_tokens(rng, prefix_len - 1, vocab)) for start in starts] or [()]
    # What comes first behind a prefix differs between all requests, the priming ones included.
    own = distinct_tokens(rng, count + groups, vocab)
    turns = tuple(
        Turn(
            own_ids=(*prefixes[i % len(prefixes)], own[i], *random_tokens(rng, length - prefix_len - 1, vocab)),
            output_len=shape.output_len,
            prompt_tokens=length,
            cached_tokens=prefix_len,
        )
        for i, length in enumerate(_lengths(shape, name, prefix_len))
    )
    primed = zip(prefixes, own[count:], strict=False) if prefix_len else ()
    return Plan(turns=turns, priming=tuple((*prefix, token) for prefix, token in primed))


def _lengths(shape: Shape, name: str, prefix_len: int) -> list[int]:
    """Of the prompts: the longest, or those of which the prefix is the share asked for."""
    count = shape.num_prompts
    if not shape.hit_rate:
        if shape.hit_rate == 0 and prefix_len:
            raise unreachable(name, shape, "its prompts share a prefix (--prefix-len)")
        return [shape.input_len] * count
    total = round(count * prefix_len / shape.hit_rate)
    if prefix_len == 0:
        raise unreachable(name, shape, f"of {shape.input_len} tokens it is less than a page of {shape.block_size}")
    if total < count * (prefix_len + 1):
        most = prefix_len / (prefix_len + 1)
        raise unreachable(name, shape, f"behind {prefix_len} shared tokens comes at least one, which makes {most:.4f}")
    return spread(total, count)
