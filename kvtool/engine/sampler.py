"""The next token of each row: greedy, or a draw from the nucleus. One function of tensors, which never waits for the
device, so that it can be part of a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

from kvtool.engine.batch import to_device
from kvtool.engine.sequence import SamplingParams
from kvtool.kernels import plain


class Sampling(Protocol):
    """What of `StepKernels` chooses tokens."""

    def likeliest(self, logits: Tensor) -> Tensor: ...

    def nucleus(self, probabilities: Tensor, top_ps: Tensor) -> Tensor: ...


class Draw(IntEnum):
    """How much the rows of a batch ask of the sampler, each including what is before it: the maximum is far cheaper
    than a draw, and a draw than to sort the vocabulary."""

    GREEDY = 0
    FROM_ALL = 1
    FROM_NUCLEUS = 2


def draw_of(params: Iterable[SamplingParams]) -> Draw:
    """The least that serves all of these rows."""
    return max((_draw(row) for row in params), default=Draw.GREEDY)


def _draw(params: SamplingParams) -> Draw:
    if params.is_greedy:
        return Draw.GREEDY
    return Draw.FROM_ALL if params.top_p == 1.0 else Draw.FROM_NUCLEUS


def sample(
    logits: Tensor, params: Sequence[SamplingParams], generator: torch.Generator, kernels: Sampling = plain
) -> Tensor:
    """logits [n, vocab], one SamplingParams a row -> token ids [n] int64. Greedy rows take the maximum."""
    draw = draw_of(params)
    if draw is Draw.GREEDY:
        return kernels.likeliest(logits)
    temperatures = to_device(logits.device, [row.divisor for row in params], torch.float32)
    top_ps = to_device(logits.device, [row.top_p for row in params], torch.float32)
    return next_tokens(logits, draw, temperatures, top_ps, generator, kernels)


def next_tokens(
    logits: Tensor,
    draw: Draw,
    temperatures: Tensor,
    top_ps: Tensor,
    generator: torch.Generator,
    kernels: Sampling = plain,
) -> Tensor:
    """logits [n, vocab], temperatures (0 for a greedy row) and top_ps [n] fp32 -> token ids [n] int64."""
    likeliest = kernels.likeliest(logits)
    if draw is Draw.GREEDY:
        return likeliest
    is_greedy = temperatures == 0.0
    probabilities = torch.softmax(logits.float() / temperatures.masked_fill(is_greedy, 1.0)[:, None], dim=-1)
    if draw is Draw.FROM_NUCLEUS:
        probabilities = kernels.nucleus(probabilities, top_ps)
    return torch.where(is_greedy, likeliest, drawn(probabilities, generator))


def drawn(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One token of each row [n, vocab] with its probability, which need not sum to 1.

    Of exponential waiting times divided by the probabilities the shortest wins with just these odds.
    """
    waiting = torch.empty_like(probabilities).exponential_(generator=generator)
    # A wait of 0 would let a token of probability 0 win, as 0 / 0.
    return probabilities.div(waiting.clamp_(min=torch.finfo(waiting.dtype).tiny)).argmax(dim=-1)
