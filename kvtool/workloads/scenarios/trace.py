"""The requests of a trace: the same block id becomes the same random tokens, and they arrive when they did."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from kvtool.cache.retention import Retention
from kvtool.system.errors import KvtoolError
from kvtool.units import ceil_div
from kvtool.workloads.prompts import random_tokens
from kvtool.workloads.scenarios.base import Plan, Shape, Turn
from kvtool.workloads.traces import open_trace
from kvtool.workloads.traces.base import TraceRequest


def trace_plan(path: Path, shape: Shape, *, time_scale: float = 1.0) -> Plan:
    """The first `num_prompts` requests of a trace, `time_scale` times as fast as they came.

    Where the longest of them does not fit into `input_len` and `output_len`, all lengths shrink by one factor, but no
    block below a page: requests that are too long then are left out. An answer in a later prompt is the trace's own,
    not what the model said: hits are those of prompts alone.
    """
    if shape.hit_rate is not None or shape.prefix_len is not None:
        raise KvtoolError(f"a trace shares what it shares: leave --hit-rate and --prefix-len away with {path.name}")
    if not 0 < time_scale < float("inf"):
        raise KvtoolError(f"time scale {time_scale} must be above 0: 2 is twice as fast as the trace")
    first = [request for request in islice(open_trace(path), shape.num_prompts) if request.input_tokens]
    most = shape.input_len + shape.output_len
    scale = _scale(first, most, shape)
    requests = sorted((r for r in first if _length(r, scale) <= most), key=lambda request: request.arrival_s)
    if not requests:
        raise KvtoolError(
            f"{path}: none of its first {shape.num_prompts} requests has a prompt that fits {most} tokens"
        )
    prompts = [_prompt(request, shape, scale) for request in requests]
    turns = tuple(
        Turn(
            own_ids=prompt,
            output_len=max(1, int(request.output_tokens * scale)),
            prompt_tokens=len(prompt),
            cached_tokens=hit,
            arrival_s=(request.arrival_s - requests[0].arrival_s) / time_scale,
            retention=_retention(request, time_scale),
        )
        for request, prompt, hit in zip(requests, prompts, _cached(prompts, shape.block_size), strict=True)
    )
    scaled = "in their own lengths" if scale == 1 else f"with lengths x {scale:.4g}"
    left_out = f", {len(first) - len(turns)} longer ones left out" if len(first) > len(turns) else ""
    return Plan(
        turns=turns,
        exact=False,
        scale=f"the first {len(first)} requests of {path.name} {scaled}{left_out}, times / {time_scale:g}",
    )


def _retention(request: TraceRequest, time_scale: float) -> Retention | None:
    """The trace's own, on the clock of the run."""
    own = request.retention
    return None if own is None else replace(own, duration_s=own.duration_s / time_scale)


def _length(request: TraceRequest, scale: float) -> int:
    """Tokens of prompt and answer, both of which have one at least."""
    return max(1, int(request.input_tokens * scale)) + max(1, int(request.output_tokens * scale))


def _scale(requests: Sequence[TraceRequest], most: int, shape: Shape) -> float:
    """The factor by which all lengths shrink so that the longest fits: 1, or one that makes a block whole pages."""
    longest = max((_length(request, 1.0) for request in requests), default=1)
    block_size = requests[0].block_size if requests else 1
    if longest <= most:
        return 1.0
    block = max(shape.block_size, shape.whole_pages(block_size * most / longest))
    return min(1.0, block / block_size)


def _prompt(request: TraceRequest, shape: Shape, scale: float) -> tuple[int, ...]:
    """Block by block, the last one cut to the prompt's length; tokens without an id are the request's own."""
    block = max(1, round(request.block_size * scale))
    length = max(1, int(request.input_tokens * scale))
    tokens: list[int] = []
    for block_id in request.block_ids[: ceil_div(length, block)]:
        tokens += random_tokens(random.Random(f"block {shape.seed} {block_id}"), block, shape.vocab_size)
    del tokens[length:]
    own = random.Random(f"line {shape.seed} {request.line}")
    return (*tokens, *random_tokens(own, length - len(tokens), shape.vocab_size))


def _cached(prompts: Sequence[tuple[int, ...]], block_size: int) -> list[int]:
    """Tokens in whole pages that each prompt has in common with one before it, its last token left out."""
    pages: set[int] = set()
    found: list[int] = []
    for prompt in prompts:
        chain, hit, leading = 0, 0, True
        for end in range(block_size, len(prompt) + 1, block_size):
            chain = hash((chain, prompt[end - block_size : end]))
            leading = leading and chain in pages and end < len(prompt)
            hit += block_size * leading
            pages.add(chain)
        found.append(hit)
    return found
