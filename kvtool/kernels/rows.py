"""Whose queries attention has, where their tokens are, and what becomes of their scores."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class Rows:
    """Whose queries a call has: S sequences and where their tokens are.

    - block_tables [S,N] int32: entry i is the physical page of a sequence's tokens i*B .. i*B+B-1. Entries of pages
      that are not used may be anything.
    - seq_lens [S] int32: tokens in the cache, those of this step included; 0 for a padding row.
    - query_starts [S+1] int32: bounds of each sequence's queries. `decode` does without.
    - max_query_len: at least the longest sequence's number of queries; None asks query_starts, which waits for a GPU.

    What a kernel on the host makes of the tensors is made once, for all layers of a step: nobody writes to them before
    the step is over.
    """

    block_tables: Tensor
    seq_lens: Tensor
    query_starts: Tensor | None = None
    max_query_len: int | None = None
    _made: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` works out of these tensors, made for the first layer of a step that asks by this key."""
        if key not in self._made:
            self._made[key] = make()
        made: Made = self._made[key]
        return made

    @cached_property
    def tables(self) -> list[list[int]]:
        """block_tables on the host."""
        return self.block_tables.tolist()

    @cached_property
    def lengths(self) -> list[int]:
        """seq_lens on the host."""
        return self.seq_lens.tolist()

    @cached_property
    def starts(self) -> list[int]:
        """query_starts on the host."""
        assert self.query_starts is not None, "prefill needs query_starts"
        return self.query_starts.tolist()

    @property
    def longest(self) -> int:
        """The most queries that a sequence may have."""
        if self.max_query_len is not None:
            return self.max_query_len
        return max((stop - start for start, stop in pairwise(self.starts)), default=0)

    def with_starts(self, num_queries: int) -> Rows:
        """The rows of a decode of so many queries as those of a prefill: each sequence has its share of them."""
        if self.query_starts is not None:
            return self
        return self.once(("starts", num_queries), lambda: self._with_equal_shares(num_queries))

    def _with_equal_shares(self, num_queries: int) -> Rows:
        each = num_queries // max(1, len(self.seq_lens))
        starts = each * torch.arange(len(self.seq_lens) + 1, dtype=torch.int32, device=self.seq_lens.device)
        return replace(self, query_starts=starts, max_query_len=each)


@dataclass(frozen=True, slots=True)
class Softmax:
    """What becomes of scores s = q k^T: softmax(scale * s), and what may come between.

    - window > 0: a query sees the last `window` tokens, its own included.
    - softcap > 0: a score becomes softcap * tanh(score / softcap).
    - sinks [HQ]: a logit of each query head that takes part in the softmax and has no value.

    Of MLA the scale is 1/sqrt(nope + rope) of the uncompressed head (times YaRN's mscale^2), not of R+E.
    """

    scale: float
    window: int = 0
    softcap: float = 0.0
    sinks: Tensor | None = None
