"""What a reader of measured kernels must know beside the figures: in words, a line for each thing."""

from __future__ import annotations

from collections.abc import Sequence

from kvtool.results import KernelCase


def remarks(cases: Sequence[KernelCase]) -> list[str]:
    """Cases that were not warm, and cases during which the card held its clocks back."""
    lines = []
    if unsteady := [case.name for case in cases if not case.steady]:
        lines.append(f"not steady after the warm-up: {_names(unsteady)}: use more --num-iters-warmup")
    reasons = sorted({reason for case in cases for reason in case.power.throttle_reasons or ()})
    for reason in reasons:
        slowed = [case.name for case in cases if reason in (case.power.throttle_reasons or ())]
        lines.append(f"the card throttled ({reason}) during {_names(slowed)}")
    return lines


def _names(names: Sequence[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{', '.join(names[:limit])}{more}"
