"""The next token of each row: greedy, or a draw from the nucleus."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.engine.sequence import SamplingParams


def sample(logits: Tensor, params: list[SamplingParams], generator: torch.Generator) -> Tensor:
    """logits [n, vocab], one SamplingParams a row -> token ids [n] int64. Rows with temperature 0 take the maximum."""
    greedy = logits.argmax(dim=-1)
    if all(row.temperature == 0.0 for row in params):
        return greedy
    temperatures = torch.tensor([row.temperature or 1.0 for row in params], device=logits.device)
    top_ps = torch.tensor([row.top_p for row in params], device=logits.device)
    probabilities = torch.softmax(logits.float() / temperatures[:, None], dim=-1)
    drawn = torch.multinomial(nucleus(probabilities, top_ps), 1, generator=generator).squeeze(-1)
    is_greedy = torch.tensor([row.temperature == 0.0 for row in params], device=logits.device)
    return torch.where(is_greedy, greedy, drawn)


def nucleus(probabilities: Tensor, top_ps: Tensor) -> Tensor:
    """Keep the smallest set of tokens whose probabilities [n, vocab] reach `top_ps` [n]; the likeliest stays."""
    ordered, tokens = probabilities.sort(dim=-1, descending=True)
    outside = ordered.cumsum(dim=-1) - ordered >= top_ps[:, None]
    return torch.zeros_like(probabilities).scatter_(-1, tokens, ordered.masked_fill(outside, 0.0))
