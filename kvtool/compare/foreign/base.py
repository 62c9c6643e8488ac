"""What the readers of foreign results share: numbers with a line for what is none, and a case out of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvtool.results import (
    AnyCase,
    Check,
    Endpoint,
    EndpointCase,
    Memory,
    Metrics,
    Roofline,
    Sample,
    StepBytes,
    Summary,
    summarise,
    tpot_s,
)
from kvtool.system.errors import KvtoolError

Value = str | int | float | bool | None
NOTHING = StepBytes(weights_read=0, kv_read=0, kv_written=0, other=0, prefill_flops=0, decode_flops=0)
NO_MEMORY = Memory(kv_predicted_bytes=0, kv_allocated_bytes=0, kv_pool_bytes=None, kv_waste_bytes=0, peak_bytes=None)


@dataclass(frozen=True, slots=True)
class Foreign:
    """What a file of another tool holds. `remarks` say how its words became ours, and what was left out."""

    tool: str
    cases: list[AnyCase]
    remarks: tuple[str, ...]


def number(found: Mapping[str, Any], name: str, where: str) -> float:
    """A finite number of 0 or more. Raises KvtoolError."""
    value = found.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise KvtoolError(f"{where} has {name} {str(value)[:40]!r}: a number is needed")
    return float(value)


def count(found: Mapping[str, Any], name: str, where: str) -> int:
    """A whole number of 0 or more. Raises KvtoolError."""
    value = number(found, name, where)
    if value != int(value):
        raise KvtoolError(f"{where} has {name} {value}: a whole number is needed")
    return int(value)


def numbers(found: Mapping[str, Any], name: str, where: str) -> list[float]:
    """A list of numbers. Raises KvtoolError."""
    values = found.get(name)
    if not isinstance(values, list):
        raise KvtoolError(f"{where} has no list {name!r}")
    return [number({name: value}, name, where) for value in values]


def alike(values: Sequence[float]) -> int | None:
    """The one whole number that all are; None where they differ, or there are none."""
    return int(values[0]) if values and min(values) == max(values) else None


def metrics_of(samples: Sequence[Sample]) -> Metrics:
    """Of requests, by our own definitions."""

    def of(seconds: Sequence[float | None]) -> Summary | None:
        return summarise([1e3 * value for value in seconds if value is not None])

    return Metrics(
        ttft_ms=of([sample.ttft_s for sample in samples]),
        tpot_ms=of([tpot_s(sample.ttft_s, sample.e2e_s, sample.output_tokens) for sample in samples]),
        itl_ms=of([gap for sample in samples for gap in sample.itl_s]),
        e2e_ms=of([sample.e2e_s for sample in samples]),
        prefill_tokens_per_s=None,
        decode_tokens_per_s=None,
    )


def endpoint_case(
    tool: str,
    inputs: Mapping[str, Value],
    metrics: Metrics,
    samples: Sequence[Sample] = (),
    *,
    requests: int,
    failed: int,
) -> EndpointCase:
    """A case of a server, as another tool measured it. What it does not tell is None."""
    told = [str(value) for name, value in inputs.items() if value is not None and name != "model"]
    return EndpointCase(
        name="/".join((tool, *told)),
        inputs={**inputs, "batch_size": None},
        samples=list(samples),
        metrics=metrics,
        bytes=NOTHING,
        roofline=Roofline(reason=f"measured by {tool}"),
        memory=NO_MEMORY,
        check=Check(text=f"measured by {tool}"),
        endpoint=Endpoint(
            url_model=str(inputs.get("model") or ""),
            server="unknown",
            route="unknown",
            scenario=tool,
            requests=requests,
            errors={"failed": failed} if failed else {},
            cache_state="unknown",
            hit_tokens=0,
            prompt_tokens=sum(sample.prompt_tokens for sample in samples),
            hit_rate=None,
            hit_source="none",
            hit_rate_requested=0.0,
            hit_rate_rounded=0.0,
            hit_tokens_expected=0,
            hits_exact=False,
            block_tokens=1,
            usage_hit_tokens=None,
            metrics_hit_tokens=None,
            preemptions=None,
            output_pinned=False,
            tokens_per_event=None,
            requests_per_s=None,
            output_tokens_per_s=None,
            client_overhead_ms=None,
            floor_tpot_ms=None,
            own_ttft_ms=None,
            own_tpot_ms=None,
            goodput_ratio=None,
            salt=0,
        ),
    )
