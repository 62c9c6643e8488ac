"""Whether two runs of the same prompts said the same, and how far their logits were apart."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol

from torch import Tensor

from kvtool.results import Check

# Share of the largest logit that rounding may move a logit by: two ways to sum the same products in this dtype.
_ROUNDING = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}


class Run(Protocol):
    """Greedy tokens and the logits [vocab] that each was chosen from."""

    @property
    def output_ids(self) -> list[int]: ...

    @property
    def logits(self) -> list[Tensor]: ...


def compare_runs(a: Seq[Run], b: Seq[Run], *, dtype: str, names: str) -> Check:
    """Run by run. Greedy tokens may part only where the two best logits are a tie within rounding."""
    largest_diff, largest_logit = 0.0, 0.0
    margins: list[float] = []
    for first, second in zip(a, b, strict=True):
        steps = _common_steps(first.output_ids, second.output_ids)
        for step in range(steps):
            largest_diff = max(largest_diff, float((first.logits[step] - second.logits[step]).abs().max()))
            largest_logit = max(largest_logit, float(first.logits[step].abs().max()))
        if steps < len(first.output_ids) or first.output_ids[-1] != second.output_ids[-1]:
            margins.append(_margin(first.logits[steps - 1], first.output_ids[steps - 1], second.output_ids[steps - 1]))
    tolerance = _ROUNDING[dtype] * largest_logit
    equal = largest_diff <= tolerance and all(margin <= 2 * largest_diff for margin in margins)
    return Check(
        outputs_equal=equal, max_abs_logit_diff=largest_diff, text=_words(names, equal, len(margins), tolerance)
    )


def logits_check(a: Tensor, b: Tensor, *, dtype: str, names: str) -> Check:
    """Logits [n, vocab] of the same step by two implementations."""
    difference, largest = float((a - b).abs().max()), float(b.abs().max())
    tolerance = _ROUNDING[dtype] * largest
    margins = [_margin(row_b, int(row_a.argmax()), int(row_b.argmax())) for row_a, row_b in zip(a, b, strict=True)]
    flips = [margin for margin in margins if margin > 0]
    equal = difference <= tolerance and all(margin <= 2 * difference for margin in flips)
    return Check(outputs_equal=equal, max_abs_logit_diff=difference, text=_words(names, equal, len(flips), tolerance))


def _common_steps(a: list[int], b: list[int]) -> int:
    """Steps that both took from the same tokens: up to and including the first that chose differently."""
    for step, (left, right) in enumerate(zip(a, b, strict=True)):
        if left != right:
            return step + 1
    return len(a)


def _margin(logits: Tensor, chosen: int, other: int) -> float:
    return abs(float(logits[chosen]) - float(logits[other]))


def _words(names: str, equal: bool, ties: int, tolerance: float) -> str:
    if not equal:
        return f"{names}: NOT equal (logits may differ by {tolerance:.2g} from rounding)"
    if ties:
        return f"{names}: equal up to {ties} ties, where the two best logits are closer than rounding"
    return f"{names}: same tokens"
