"""Token by token: how the next token's distribution moves, its statistics over dependent tokens, and a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kvtool.machine.stats import CONFIDENCE, t_bound

if TYPE_CHECKING:
    Values = np.ndarray[Any, np.dtype[np.float64]]

BLOCK_TOKENS = 64  # that count as one value: neighbours in a text are not independent
LEAST_BLOCKS = 16  # of a verdict
TOLERANCE = 0.01  # nats a token (1 % of the perplexity): a loss below it is taken for none where none can be shown
COLLAPSE = 0.69  # nats a token: the perplexity doubles
ROWS = 64  # of logits that are widened at a time


@dataclass(frozen=True, slots=True)
class Moved:
    """Of each token that a window predicts: its surprise in nats by the reference and by the format, the KL of the
    format's distribution from the reference's, and whether both would have chosen the same."""

    reference_nll: Values
    nll: Values
    kl: Values
    agrees: Values


def moved(reference: Tensor, logits: Tensor, token_ids: list[int]) -> Moved:
    """Logits [L, vocab] of both behind each of L tokens, the last of which predicts nothing."""
    targets = torch.tensor(token_ids[1:], device=logits.device)
    parts = [
        _rows(reference[at : at + ROWS], logits[at : at + ROWS], targets[at : at + ROWS])
        for at in range(0, len(targets), ROWS)
    ]
    columns = (torch.cat(column).double().cpu().numpy() for column in zip(*parts, strict=True))
    return Moved(*columns)


def _rows(reference: Tensor, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    reference, logits = reference[: len(targets)], logits[: len(targets)]
    expected, found = reference.float().log_softmax(-1), logits.float().log_softmax(-1)
    kl = (expected.exp() * (expected - found)).sum(-1).clamp(min=0.0)
    nlls = (-each.gather(1, targets.unsqueeze(1)).squeeze(1) for each in (expected, found))
    return (*nlls, kl, (reference.argmax(-1) == logits.argmax(-1)).float())  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over tokens, and its standard error over blocks of them; None of a single block."""

    value: float
    se: float | None


def mean_of(windows: list[Values]) -> Mean:
    """Blocks do not span windows."""
    blocks = np.array([block.mean() for values in windows for block in np.array_split(values, _blocks_of(values))])
    se = float(blocks.std(ddof=1) / len(blocks) ** 0.5) if len(blocks) > 1 else None
    return Mean(float(np.concatenate(windows).mean()), se)


def _blocks_of(values: Values) -> int:
    """As many blocks, of nearly the same length, as come nearest to BLOCK_TOKENS."""
    return max(1, round(len(values) / BLOCK_TOKENS))


def num_blocks(windows: list[Values]) -> int:
    """Of all windows."""
    return sum(map(_blocks_of, windows))


SAME, LOSES, COLLAPSES = "not distinguishable from {0} at this sample", "loses", "collapses"
TOO_SHORT = "nothing can be said: {0} tokens are too few"
TOO_WIDE = "nothing can be said yet: the interval of {0} tokens is too wide"


def verdict(change: Mean, blocks: int, tokens: int, reference: str) -> str:
    """Of the surprise that a format adds, in nats a token: by its 95 % interval, over `blocks` of tokens."""
    if blocks < LEAST_BLOCKS or change.se is None:
        return TOO_SHORT.format(f"{tokens:,}")
    reach = t_bound(CONFIDENCE, blocks - 1) * change.se
    low, high = change.value - reach, change.value + reach
    if low > COLLAPSE:
        return COLLAPSES
    if low > 0:
        return LOSES
    return SAME.format(reference) if high < TOLERANCE else TOO_WIDE.format(f"{tokens:,}")


def is_settled(words: str) -> bool:
    """Whether more tokens would not change what is said."""
    return not words.startswith("nothing")
