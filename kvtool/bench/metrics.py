"""Samples to the metrics of a case, as `definitions` words them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

from kvtool.results import Metrics, Sample, Summary, summarise


def metrics_of(samples: Sequence[Sample], *, queues: bool = False) -> Metrics:
    """Metrics over samples of one arm."""
    batches = defaultdict(list)
    for sample in samples:
        batches[sample.run, sample.iteration].append(sample)
    return Metrics(
        ttft_ms=summary_ms(sample.ttft_s for sample in samples),
        tpot_ms=summary_ms(sample.tpot_s for sample in samples),
        itl_ms=summary_ms(gap for sample in samples for gap in sample.itl_s),
        e2e_ms=summary_ms(sample.e2e_s for sample in samples),
        prefill_tokens_per_s=None if queues else median(_prefill_rate(batch) for batch in batches.values()),
        decode_tokens_per_s=_median_or_none(_decode_rate(batch) for batch in batches.values()),
    )


def summary_ms(seconds: Iterable[float | None]) -> Summary | None:
    """Milliseconds; values that do not exist are left out, and None stands for none at all."""
    return summarise([value * 1e3 for value in seconds if value is not None])


def prefill_s(batch: Sequence[Sample]) -> float:
    """Until the last request of a batch submitted at once has its first token."""
    return max(sample.ttft_s for sample in batch)


def _prefill_rate(batch: Sequence[Sample]) -> float:
    return sum(sample.prompt_tokens - sample.cached_tokens for sample in batch) / prefill_s(batch)


def _decode_rate(batch: Sequence[Sample]) -> float | None:
    tokens = sum(sample.output_tokens - 1 for sample in batch)
    seconds = max(sample.e2e_s for sample in batch) - prefill_s(batch)
    return tokens / seconds if tokens and seconds > 0 else None


def _median_or_none(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return median(found) if found else None
