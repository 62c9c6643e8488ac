"""The next token of each row: greedy, or a draw from the nucleus."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.engine.sequence import SamplingParams


def sample(logits: Tensor, params: list[SamplingParams], generator: torch.Generator) -> Tensor:
    """logits [n, vocab], one SamplingParams a row -> token ids [n] int64. Greedy rows take the maximum."""
    greedy = logits.argmax(dim=-1)
    if all(row.is_greedy for row in params):
        return greedy
    temperatures = torch.tensor([1.0 if row.is_greedy else row.temperature for row in params], device=logits.device)
    top_ps = torch.tensor([row.top_p for row in params], device=logits.device)
    probabilities = torch.softmax(logits.float() / temperatures[:, None], dim=-1)
    drawn = torch.multinomial(nucleus(probabilities, top_ps), 1, generator=generator).squeeze(-1)
    is_greedy = torch.tensor([row.is_greedy for row in params], device=logits.device)
    return torch.where(is_greedy, greedy, drawn)


def nucleus(probabilities: Tensor, top_ps: Tensor) -> Tensor:
    """Keep the smallest set of tokens whose probabilities [n, vocab] reach `top_ps` [n]; the likeliest stays."""
    ordered, tokens = probabilities.sort(dim=-1, descending=True)
    outside = ordered.cumsum(dim=-1) - ordered >= top_ps[:, None]
    outside &= top_ps[:, None] < 1.0  # a rounded sum may reach 1 before the last token
    return torch.zeros_like(probabilities).scatter_(-1, tokens, ordered.masked_fill(outside, 0.0))
