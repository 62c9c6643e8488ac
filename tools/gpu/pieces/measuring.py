"""Measurements of kvtool itself as cases: one call of a kernel or one batch of a model a case, one document each."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tools.gpu.cases import Result
from tools.gpu.store import Store

if TYPE_CHECKING:
    from kvtool.bench.session import Outcome
    from kvtool.machine.roofline import Ceiling

CEILING = "ceiling.json"
CEILING_S = 2.0
PAGE = 64
DEVICE = "cuda"


class UnequalError(Exception):
    """What was measured computes something else than its reference; `result` is kept all the same."""

    def __init__(self, message: str, result: Result) -> None:
        super().__init__(message)
        self.result = result


@dataclass(frozen=True)
class Grid:
    """Kernel calls of one case: decode of `batch_size` sequences, or a prefill of their last `query_len` tokens."""

    model: str
    part: str
    context: int
    batch_size: int = 1
    cache: str = "bf16"
    query_len: int = 2048

    @property
    def name(self) -> str:
        """As `decode llama-3.1-8b 4096 x 32 bf16`."""
        new = f" last {self.query_len}" if self.part == "prefill" else ""
        return f"{self.part} {self.model} {self.context}{new} x {self.batch_size} {self.cache}"


def measured_ceiling(store: Store, device: str = DEVICE, seconds: float = CEILING_S) -> Ceiling:
    """The device's limits, kept for the other pieces; the better of those that were measured."""
    import torch

    from kvtool.machine.roofline import measure_roofline

    ceiling = measure_roofline(device, torch.bfloat16, seconds=seconds)
    if (before := kept_ceiling(store)) is not None:
        ceiling = before.best_of(ceiling)
    store.write(CEILING, json.dumps(asdict(ceiling)).encode())
    return ceiling


def kept_ceiling(store: Store) -> Ceiling | None:
    """What an earlier process measured, or None."""
    from kvtool.machine.roofline import Ceiling

    for path in store.find(CEILING):
        with suppress(OSError, ValueError, TypeError):
            return Ceiling(**json.loads(path.read_bytes()))
    return None


def the_ceiling(store: Store, device: str = DEVICE) -> Ceiling:
    """As it was kept, else measured now."""
    return kept_ceiling(store) or measured_ceiling(store, device)


def kernel_document(
    store: Store, grid: Grid, *, peers: tuple[str, ...] = (), num_iters: int = 20, device: str = DEVICE
) -> Result:
    """The document of `kvtool kernels` with this one case. Raises UnequalError for an output unlike the reference's."""
    from kvtool.bench.kernels.kernels import measure_kernels
    from kvtool.bench.kernels.options import KernelsOptions
    from kvtool.catalog.resolve import resolve_model

    options = KernelsOptions(
        contexts=(grid.context,),
        batch_sizes=(grid.batch_size,),
        chunk_len=min(grid.query_len, grid.context),
        num_iters=num_iters,
        kv_cache_dtypes=(grid.cache,),
        block_sizes=(PAGE,),
        device=device,
        parts=(grid.part,),
        peers=peers,
    )
    model = resolve_model(grid.model)
    return document_of(measure_kernels(model, options, progress=quiet, ceiling=the_ceiling(store, device)))


@dataclass(frozen=True)
class Batch:
    """A batch of a model: `batch_size` prompts of `input_len` tokens."""

    model: str
    input_len: int
    batch_size: int
    output_len: int
    num_layers: int | None = None

    @property
    def name(self) -> str:
        """As `llama-3.1-8b 1024 x 1`."""
        return f"{self.model} {self.input_len} x {self.batch_size}"


def bench_document(
    store: Store, batch: Batch, *, peers: tuple[str, ...] = (), num_iters: int = 3, device: str = DEVICE
) -> Result:
    """The document of `kvtool bench --parts latency` with this one case. Raises UnequalError as `kernel_document`."""
    from kvtool.bench.bench import bench
    from kvtool.bench.options import bench_options
    from kvtool.catalog.resolve import resolve_model
    from kvtool.engine.config import EngineConfig

    config = EngineConfig(device=device, block_size=PAGE, num_layers=batch.num_layers)
    options = bench_options(
        device,
        parts=("latency",),
        num_iters=num_iters,
        num_iters_warmup=1,
        peers=peers,
        input_lens=(batch.input_len,),
        batch_sizes=(batch.batch_size,),
        output_len=batch.output_len,
    )
    model = resolve_model(batch.model)
    return document_of(bench(model, config, options, progress=quiet, ceiling=the_ceiling(store, device)))


def document_of(outcome: Outcome[Any]) -> Result:
    """As JSON holds it. Raises UnequalError for what is not as was asked, KeyboardInterrupt for what was cut short."""
    import msgspec

    if outcome.interrupted:
        raise KeyboardInterrupt
    document: dict[str, Any] = msgspec.to_builtins(outcome.document)
    unequal = [case["check"]["text"] for case in document["cases"] if case["check"]["outputs_equal"] is False]
    if wrong := [*outcome.errors, *outcome.unequal, *unequal]:
        raise UnequalError("; ".join(wrong), document)
    return document


def quiet(doing: str, share: float) -> None:
    """Progress that nobody watches."""
