"""`--profile FILE,...`: speeds that kvtool measured, in the place of a card's figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from kvtool.errors import KvtoolError
from kvtool.files import read_bytes, refuse_deep

BENCH, TIERS = "kvtool.bench/1", "kvtool.tiers/1"
LARGEST_BYTES = 1 << 28

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Measured:
    """`tflops` that a prefill reached on one GPU; read and write GB/s and latency in seconds of tiers by name."""

    tflops: float | None = None
    tiers: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    sources: tuple[str, ...] = ()


NOTHING_MEASURED = Measured()


class _Speed(msgspec.Struct, frozen=True):
    """A tier of kvtool.tiers/1: up is towards the GPU."""

    tier: str
    up_gbps: float
    down_gbps: float
    latency_us: float


class _Tiers(msgspec.Struct, frozen=True):
    tiers: list[_Speed]


class _Ttft(msgspec.Struct, frozen=True):
    p50: float | None = None


class _Metrics(msgspec.Struct, frozen=True):
    ttft_ms: _Ttft | None = None


class _Bytes(msgspec.Struct, frozen=True):
    prefill_flops: float | None = None


class _Case(msgspec.Struct, frozen=True):
    part: str
    metrics: _Metrics
    bytes: _Bytes


class _Bench(msgspec.Struct, frozen=True):
    cases: list[_Case]


def read_profiles(paths: Iterable[Path]) -> Measured:
    """What the documents say together. Raises KvtoolError for one that is neither, or has nothing that was measured."""
    tflops: float | None = None
    tiers: dict[str, tuple[float, float, float]] = {}
    sources = []
    for path in paths:
        schema, document = _document(path)
        if schema == BENCH:
            tflops = _tflops(path, _typed(path, document, _Bench))
            sources.append(f"prefills run at {tflops:.4g} TFLOP/s a GPU, as measured in {path.name}")
        elif schema == TIERS:
            found = _speeds(path, _typed(path, document, _Tiers).tiers)
            tiers |= found
            sources.append(f"speeds of {', '.join(found)} are those measured in {path.name}")
        else:
            raise KvtoolError(f"{path} is neither a {BENCH} nor a {TIERS} document (its schema is {schema!r})")
    return Measured(tflops, tiers, tuple(sources))


def _document(path: Path) -> tuple[object, Any]:
    data = read_bytes(path, at_most=LARGEST_BYTES, what="document of kvtool")
    try:
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise KvtoolError(f"{path} is no JSON document: {error}") from error
    refuse_deep(found, path)
    return (found.get("schema") if isinstance(found, dict) else None), found


def _typed(path: Path, document: object, kind: type[T]) -> T:
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise KvtoolError(f"{path}: {error}") from error


def _tflops(path: Path, bench: _Bench) -> float:
    """Of latency cases, the best: the longest prefills come nearest to what a GPU can do."""
    rates = [
        case.bytes.prefill_flops / (case.metrics.ttft_ms.p50 / 1e3) / 1e12
        for case in bench.cases
        if case.part == "latency" and case.bytes.prefill_flops and case.metrics.ttft_ms and case.metrics.ttft_ms.p50
    ]
    if not rates:
        raise KvtoolError(f"{path} has no latency case with a prefill: run kvtool bench with --parts latency")
    return max(rates)


def _speeds(path: Path, speeds: Sequence[_Speed]) -> dict[str, tuple[float, float, float]]:
    """Read and write GB/s and seconds of latency, by tier."""
    found = {one.tier: (one.up_gbps, one.down_gbps, one.latency_us / 1e6) for one in speeds}
    if not found or not all(0 < min(read, write) < float("inf") for read, write, _ in found.values()):
        raise KvtoolError(f"{path} has no tier that was measured to its end: run kvtool tiers again")
    return found
