"""`--profile FILE,...`: speeds that kvtool measured, in the place of a card's figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from kvtool.system.errors import KvtoolError
from kvtool.system.files import read_bytes, refuse_deep

BENCH, TIERS = "kvtool.bench/1", "kvtool.tiers/1"
LARGEST_BYTES = 1 << 28
STEP_PARTS = ("latency", "prefix")  # whose batches are prefilled in one step, before they decode

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Observed:
    """Requests of one case of a benchmark, computed in one step: each has `prompt_tokens` of which `cached_tokens` were
    there. `ttft_s` and `tpot_s` have all that was measured.
    """

    sequences: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    ttft_s: tuple[float, ...]
    tpot_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """`tflops` that a prefill reached on one GPU; read and write GB/s and latency in seconds of tiers by name.

    `observed` are steps of `model` (with so many layers) on `device`.
    """

    tflops: float | None = None
    tiers: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    model: str | None = None
    num_layers: int | None = None
    device: str | None = None
    observed: tuple[Observed, ...] = ()


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


class _Inputs(msgspec.Struct, frozen=True):
    model: str | None = None
    num_layers: int | None = None
    batch_size: int | None = None
    concurrency: int | None = None
    request_rate: float | None = None
    max_num_batched_tokens: int | None = None


class _Sample(msgspec.Struct, frozen=True):
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    ttft_s: float | None = None
    itl_s: list[float] = []
    error: str | None = None


class _Case(msgspec.Struct, frozen=True):
    part: str
    metrics: _Metrics
    bytes: _Bytes
    inputs: _Inputs = _Inputs()
    samples: list[_Sample] = []


class _Environment(msgspec.Struct, frozen=True):
    device: str | None = None
    cpu: str | None = None
    gpu: str | None = None


class _Bench(msgspec.Struct, frozen=True):
    cases: list[_Case]
    environment: _Environment = _Environment()


def read_profiles(paths: Iterable[Path]) -> Measured:
    """What the documents say together. Raises KvtoolError for one that is neither, or has nothing that was measured."""
    found_bench = Measured()
    tiers: dict[str, tuple[float, float, float]] = {}
    sources = []
    for path in paths:
        schema, document = _document(path)
        if schema == BENCH:
            found_bench = _bench(path, _typed(path, document, _Bench))
            sources.append(f"prefills run at {found_bench.tflops:.4g} TFLOP/s a GPU, as measured in {path.name}")
        elif schema == TIERS:
            found = _speeds(path, _typed(path, document, _Tiers).tiers)
            tiers |= found
            sources.append(f"speeds of {', '.join(found)} are those measured in {path.name}")
        else:
            raise KvtoolError(f"{path} is neither a {BENCH} nor a {TIERS} document (its schema is {schema!r})")
    return replace(found_bench, tiers=tiers, sources=tuple(sources))


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


def _bench(path: Path, bench: _Bench) -> Measured:
    """The rate, and each step on its own as far as all cases are of one model."""
    cases = [case for case in bench.cases if case.part in STEP_PARTS and _alone(case.inputs)]
    models = {(case.inputs.model, case.inputs.num_layers) for case in cases}
    name, layers = next(iter(models)) if len(models) == 1 else (None, None)
    observed = [one for case in cases for one in _steps(case)] if name else []
    environment = bench.environment
    device = environment.gpu or environment.cpu or environment.device
    return Measured(_tflops(path, bench), model=name, num_layers=layers, device=device, observed=tuple(observed))


def _alone(inputs: _Inputs) -> bool:
    """Whether nothing but its own batch ran."""
    return inputs.concurrency is None and inputs.request_rate is None


def _steps(case: _Case) -> Iterator[Observed]:
    """Samples of one batch whose prompts went through one step, by what of them was cached."""
    batch = case.inputs.batch_size or 1
    kinds: dict[tuple[int, int, int], list[_Sample]] = {}
    for sample in case.samples:
        new_tokens = batch * (sample.prompt_tokens - sample.cached_tokens)
        fits = case.inputs.max_num_batched_tokens is None or new_tokens <= case.inputs.max_num_batched_tokens
        if fits and sample.error is None and sample.ttft_s is not None:
            kinds.setdefault((sample.prompt_tokens, sample.cached_tokens, sample.output_tokens), []).append(sample)
    for (prompt, cached, output), samples in kinds.items():
        ttft_s = tuple(sample.ttft_s for sample in samples if sample.ttft_s is not None)
        tpot_s = tuple(sum(sample.itl_s) / len(sample.itl_s) for sample in samples if sample.itl_s)
        yield Observed(batch, prompt, cached, output, ttft_s, tpot_s)


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
