"""Weights of few bits as files store them: codes, and scales that blocks of them share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 32  # inputs of a row that share a scale


@dataclass(frozen=True, slots=True)
class Blocks:
    """A weight [N,K] as a file stores it: codes uint8 [N,K] of `bits`, unsigned, fp16 scale [N,K/32], and least.

    weight = scale * code + least for fp16 least [N,K/32]; without it codes are around their middle,
    weight = scale * (code - 2^(bits-1)). A scale in fp32 is one of whole rows, [N,1], and has no least beside it.
    """

    codes: Tensor
    bits: int
    scale: Tensor
    least: Tensor | None = None

    @property
    def scales_rows(self) -> bool:
        return self.scale.dtype == torch.float32

    def map(self, function: Callable[[Tensor], Tensor]) -> Blocks:
        """The blocks of what `function` makes of the rows of each tensor."""
        least = None if self.least is None else function(self.least)
        return Blocks(function(self.codes), self.bits, function(self.scale), least)


def stacked(parts: Sequence[Blocks | None]) -> Blocks | None:
    """Weights over each other, where all are stored alike."""
    known = [part for part in parts if part is not None]
    kinds = {(part.bits, part.scales_rows, part.least is None) for part in known}
    if len(known) < len(parts) or len(kinds) != 1:
        return None
    least = [part.least for part in known if part.least is not None]
    codes, scale = (torch.cat([getattr(part, name) for part in known]) for name in ("codes", "scale"))
    return Blocks(codes, known[0].bits, scale, torch.cat(least) if least else None)


@dataclass(frozen=True, slots=True)
class Saving:
    """What a product of up to `rows` rows reads less than the weight's own bytes."""

    rows: int
    bytes: int
