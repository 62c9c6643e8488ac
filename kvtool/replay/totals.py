"""What a replay hit, in the three averages that people mean by a hit rate, over all requests or the last ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvtool.replay.accesses import Accesses
from kvtool.replay.loops.core import IntArray


@dataclass(frozen=True, slots=True)
class Totals:
    """Over the requests that count: hits are looked up before a request's own blocks are stored."""

    hit_blocks: int
    total_blocks: int
    hit_tokens: int
    total_tokens: int
    mean_request_token_hit_ratio: float

    @property
    def block_hit_ratio(self) -> float:
        return self.hit_blocks / self.total_blocks if self.total_blocks else 0.0

    @property
    def token_hit_ratio(self) -> float:
        return self.hit_tokens / self.total_tokens if self.total_tokens else 0.0


def totals(accesses: Accesses, hits: IntArray, first: int) -> Totals:
    """Of `hits` [requests] blocks at the head of each request, from request `first` on.

    A request without tokens has a hit ratio of 0 in the mean over requests.
    """
    tokens = accesses.tokens_of(hits)[first:]
    inputs = accesses.input_tokens[first:]
    ratios = tokens / np.maximum(inputs, 1)
    return Totals(
        hit_blocks=int(hits[first:].sum()),
        total_blocks=int(accesses.starts[-1] - accesses.starts[first]),
        hit_tokens=int(tokens.sum()),
        total_tokens=int(inputs.sum()),
        mean_request_token_hit_ratio=float(ratios.mean()) if len(ratios) else 0.0,
    )


def first_counted(num_requests: int, last: float) -> int:
    """The first request of the last part: of 12,031 requests, `last` 0.5 counts from number 6,015 (from 0) on."""
    return int(num_requests * (1 - last) + 1e-9)
