"""How an answer is written down: a number beside the one it was held against, and by how much they differ."""

from __future__ import annotations

from collections.abc import Mapping

from kvtool.results import AdviseDecision, AdviseOption


def decision(
    question: str,
    answer: str,
    *,
    value: float | None,
    threshold: float | None,
    unit: str,
    because: str,
    command: str,
    options: Mapping[str, float | None] | None = None,
) -> AdviseDecision:
    """The margin is a part of the threshold: None where there is none, or nothing was compared."""
    margin = None if value is None or not threshold else abs(value / threshold - 1)
    return AdviseDecision(
        question=question,
        answer=answer,
        value=value,
        unit=unit,
        threshold=threshold,
        margin=margin,
        because=because,
        command=command,
        options=[AdviseOption(name=name, value=number) for name, number in (options or {}).items()],
    )
