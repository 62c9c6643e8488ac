"""How long requests are, from a trace or as a lognormal, and how many such requests a pool holds at once.

Every request counts with its full length, prompt and output, and lengths are drawn independently of each other.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

from kvtool.results import SizeLengths
from kvtool.sizing.fit import MAX_BATCH_SIZE, Budget, largest
from kvtool.sizing.usage import GpuCache
from kvtool.system.errors import KvtoolError
from kvtool.units import ceil_div, format_bytes

if TYPE_CHECKING:
    import numpy as np

PROBABILITY = 0.99
MAX_STEPS = 1 << 18  # of the grid on which the sum of many requests is worked out


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Lengths in tokens, ascending, all equally likely. `requests`: how many were read; None for a fitted curve."""

    source: str
    tokens: tuple[int, ...]
    requests: int | None

    def at(self, share: float) -> int:
        """The shortest length that `share` of all requests do not exceed."""
        return self.tokens[max(0, math.ceil(share * len(self.tokens)) - 1)]

    def up_to(self, longest: int | None) -> Lengths:
        """Those that a model of `longest` positions can serve; `source` says how many it cannot. Raises KvtoolError."""
        if longest is None or self.tokens[-1] <= longest:
            return self
        kept = tuple(tokens for tokens in self.tokens if tokens <= longest)
        if not kept:
            raise KvtoolError(f"--lengths: every request is longer than the {longest:,} tokens of --max-model-len")
        dropped = f"{1 - len(kept) / len(self.tokens):.2%} longer than {longest:,} tokens left out"
        return Lengths(source=f"{self.source}; {dropped}", tokens=kept, requests=self.requests and len(kept))


@dataclass(frozen=True, slots=True)
class _Stage:
    """One GPU's pool beyond the prefix that all share, and what one request of each length adds: (bytes, how often)."""

    room_bytes: int
    requests: tuple[tuple[int, int], ...]

    @property
    def mean_bytes(self) -> float:
        return sum(taken * often for taken, often in self.requests) / sum(often for _, often in self.requests)


def fitting_requests(
    lengths: Lengths, memory: Budget, cache: GpuCache, *, shared_prefix: int, longest: int | None
) -> SizeLengths:
    """How many requests fit on all GPUs: on average, with 99 % probability, and if all were as long as the longest.

    Raises KvtoolError where the size of the pool is not known.
    """
    pool = memory.kv_pool_bytes
    if pool is None:
        raise KvtoolError("--lengths needs the bytes of the weights, which are not known: give --calibration")
    lengths = lengths.up_to(longest)
    stages = [_stage(lengths, pool, part, shared_prefix) for part in _stages(cache)]
    steps = [_step_bytes(stage) for stage in stages]
    on_average = min(_expected(stage) for stage in stages)
    likely = min(_likely(stage, step) for stage, step in zip(stages, steps, strict=True))

    def all_longest(sequences: int) -> bool:
        prefix = min(shared_prefix, lengths.tokens[-1])
        return cache.bytes_per_gpu(tokens=lengths.tokens[-1], batch_size=sequences, shared_prefix=prefix) <= pool

    return SizeLengths(
        source=lengths.source,
        requests=lengths.requests,
        mean_tokens=sum(lengths.tokens) / len(lengths.tokens),
        p50_tokens=lengths.at(0.5),
        p95_tokens=lengths.at(0.95),
        max_tokens=lengths.tokens[-1],
        probability=PROBABILITY,
        expected_requests=cache.dp * on_average,
        likely_requests=cache.dp * likely,
        worst_case_requests=largest(all_longest, MAX_BATCH_SIZE),
        method=f"distribution of the sum, convolved in steps of {format_bytes(max(steps))}"
        + (f"; the probability is of each of {cache.dp} replicas" if cache.dp > 1 else ""),
    )


def _stages(cache: GpuCache) -> list[GpuCache]:
    """Each pipeline stage of one replica alone: a request must fit on all of them."""
    return [GpuCache(stages=(stage,), block_size=cache.block_size, dp=1, dcp=cache.dcp) for stage in cache.stages]


def _stage(lengths: Lengths, pool: int, part: GpuCache, shared_prefix: int) -> _Stage:
    """A further request of n tokens adds what a batch of two takes beyond a batch of one."""

    def added(tokens: int) -> int:
        prefix = min(shared_prefix, tokens)
        two, one = (part.bytes_per_gpu(tokens=tokens, batch_size=n, shared_prefix=prefix) for n in (2, 1))
        return two - one

    once = 0
    if shared_prefix:
        once = part.bytes_per_gpu(tokens=shared_prefix, batch_size=1) - added(shared_prefix)
    taken: Counter[int] = Counter()
    for tokens, often in Counter(lengths.tokens).items():
        taken[added(tokens)] += often
    return _Stage(pool - once, tuple(sorted(taken.items())))


def _expected(stage: _Stage) -> int:
    if stage.room_bytes < 0:
        return 0
    return min(MAX_BATCH_SIZE, math.floor(stage.room_bytes / stage.mean_bytes)) if stage.mean_bytes else MAX_BATCH_SIZE


def _step_bytes(stage: _Stage) -> int:
    """The step of the grid: what divides every request, so that the sum is exact, unless that is too fine."""
    common = reduce(math.gcd, (taken for taken, _ in stage.requests)) or 1
    return max(common, ceil_div(max(stage.room_bytes, 1), MAX_STEPS))


def _likely(stage: _Stage, step_bytes: int) -> int:
    """The most requests whose sum stays within the room with the probability asked for.

    Sums beyond the room are dropped, which changes no probability within it: bytes only add up. Powers of two of the
    distribution are built by doubling, then taken from the largest down.
    """
    if stage.room_bytes < 0:
        return 0
    if not stage.mean_bytes:
        return MAX_BATCH_SIZE
    powers = [_distribution(stage, step_bytes)]
    while powers[-1].sum() >= PROBABILITY and 1 << len(powers) <= MAX_BATCH_SIZE:
        powers.append(_convolved(powers[-1], powers[-1]))
    count, total = 0, None
    for exponent in reversed(range(len(powers))):
        tried = powers[exponent] if total is None else _convolved(total, powers[exponent])
        if tried.sum() >= PROBABILITY:
            count, total = count + (1 << exponent), tried
    return count


def _distribution(stage: _Stage, step_bytes: int) -> np.ndarray[Any, Any]:
    """Probability of each number of steps up to the room; what is between two steps goes to both, keeping the mean."""
    import numpy as np

    steps = stage.room_bytes // step_bytes
    probability = np.zeros(steps + 2)
    requests = sum(often for _, often in stage.requests)
    for taken, often in stage.requests:
        low, rest = divmod(taken, step_bytes)
        if low <= steps:
            probability[low] += often / requests * (1 - rest / step_bytes)
            probability[low + 1] += often / requests * rest / step_bytes
    return probability[:-1]


def _convolved(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The distribution of the sum of two, up to the room of both."""
    import numpy as np

    size = 1 << (2 * len(a) - 1).bit_length()
    both = np.fft.irfft(np.fft.rfft(a, size) * np.fft.rfft(b, size), size)[: len(a)]
    return np.maximum(both, 0.0)
