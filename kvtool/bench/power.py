"""What the card drew and at which clocks, per case; all null where NVML is absent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from kvtool.machine.nvml import NvmlSummary
from kvtool.results import Power, Sample


def power_of(summary: NvmlSummary, samples: Sequence[Sample] = ()) -> Power:
    """The summary, and the card's energy over the tokens that came out in the meantime, where there were any."""
    tokens = sum(sample.output_tokens for sample in samples)
    values = {field.name: getattr(summary, field.name) for field in fields(summary)}
    throttle = values.pop("throttle_reasons")
    return Power(
        **values,
        throttle_reasons=None if throttle is None else list(throttle),
        energy_per_token_j=None if summary.energy_j is None or not tokens else summary.energy_j / tokens,
    )
