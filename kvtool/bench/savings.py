"""What a prefix cache saved a workload: paired times of its arms, FLOPs and bytes of what was found."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from msgspec.structs import replace

from kvtool.catalog.model import Model
from kvtool.machine.stats import paired_median_difference
from kvtool.results import Sample, Saved
from kvtool.sizing.specs import CacheSpec
from kvtool.sizing.speed.traffic import kv_written_bytes, prefill_flops


def savings(model: Model, specs: Sequence[CacheSpec], samples: Sequence[Sample], hit_tokens: int) -> Saved:
    """Of the samples of all arms; `hit_tokens` are those of one iteration."""
    first = [sample for sample in of_arm(samples, "cached") if sample.iteration == 0]
    saved, whole = 0, 0
    for sample in first:
        saved += flops_saved(model, sample.prompt_tokens, sample.cached_tokens)
        whole += prefill_flops(model, sample.prompt_tokens) or 0
    return Saved(
        **_times(samples),
        flops=saved,
        flops_ratio=saved / whole if whole else 0.0,
        kv_bytes_not_written=kv_written_bytes(specs, hit_tokens),
    )


def with_times(saved: Saved, samples: Sequence[Sample]) -> Saved:
    """The same with its times from other samples."""
    return replace(saved, **_times(samples))


def flops_saved(model: Model, prompt_tokens: int, cached_tokens: int) -> int:
    """FLOPs of the prefill of a prompt that its cached tokens spare; its last token always goes through the head."""
    cached_tokens = min(cached_tokens, prompt_tokens - 1)
    whole, rest = (prefill_flops(model, prompt_tokens - skipped, skipped) for skipped in (0, cached_tokens))
    assert whole is not None
    assert rest is not None
    return whole - rest


def of_arm(samples: Sequence[Sample], arm: str) -> list[Sample]:
    return [sample for sample in samples if sample.arm == arm]


def ttfts_in_order(samples: Sequence[Sample], arm: str) -> list[float]:
    """TTFTs of an arm by run and iteration; within one, requests are in the same order in every arm."""
    own = sorted(of_arm(samples, arm), key=lambda sample: (sample.run, sample.iteration))
    return [sample.ttft_s for sample in own]


def _times(samples: Sequence[Sample]) -> dict[str, Any]:
    cached, uncached, again = (ttfts_in_order(samples, arm) for arm in ("cached", "uncached", "repeat"))
    saved = paired_median_difference(cached, uncached)
    noise = paired_median_difference(cached, again) if again else None
    return {
        "ttft_ms": saved.value * 1e3,
        "ttft_ms_ci_low": saved.low * 1e3,
        "ttft_ms_ci_high": saved.high * 1e3,
        "ttft_ratio": saved.value / median(uncached),
        "repeat_ms": noise and noise.value * 1e3,
        "repeat_ms_ci_low": noise and noise.low * 1e3,
        "repeat_ms_ci_high": noise and noise.high * 1e3,
    }
