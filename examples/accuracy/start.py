"""One start of starts.csv, and what kvtool predicts of it."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, replace
from pathlib import Path

from kvtool.catalog.gpus import find_gpu
from kvtool.catalog.model import Model
from kvtool.catalog.resolve import resolve_model
from kvtool.sizing.engines.estimates import Estimates
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.vllm import beside_weights, capability_of, plan
from kvtool.sizing.engines.vllm.memory import stage_estimates
from kvtool.sizing.engines.vllm.versions import rules_of
from kvtool.sizing.fit import batch_limits
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.weights import weigh
from kvtool.units import GIB

CARD = "H100-SXM-80GB"
CARD_GIB = 79.19  # of the two oldest starts, whose logs do not have it: as of all others


@dataclass(frozen=True)
class Start:
    """A row as logged, and the prediction: `own_pool_gib` and `weights_gib` are None where weights are not known."""

    row: dict[str, str]
    weights_gib: float | None
    activation_gib: float
    runtime_gib: float
    pool_gib: float
    own_pool_gib: float | None
    tokens: int
    concurrency: float

    def logged(self, name: str) -> float:
        return float(self.row[name])

    def error(self, name: str, predicted: float | None) -> float | None:
        """Of the prediction, as a part of what was logged."""
        return None if predicted is None else predicted / self.logged(name) - 1


def read_starts(folder: Path) -> list[Start]:
    """All starts of `folder`/starts.csv. Raises KvtoolError for a model that nobody knows."""
    with (folder / "starts.csv").open() as file:
        return [_predict(row) for row in csv.DictReader(file)]


def _predict(row: dict[str, str]) -> Start:
    model = replace(resolve_model(row["model"]), id=row["model"])
    options = EngineOptions(
        name="vllm",
        version=row["vllm"],
        parallel=Parallel(tp=int(row["tp"]), pp=int(row["pp"])),
        gpu=find_gpu(CARD),
        max_model_len=int(row["max_model_len"]),
        kv_cache_dtype=row["kv_cache_dtype"],
        dtype={"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}[row["dtype"].removeprefix("torch.")],
    )
    weights_gib = _weights_gib(model, row, options)
    first, last = _stage(model, options, last=options.parallel.pp == 1), _stage(model, options, last=True)
    logged = float(row["weights_memory_gib"])
    poorest = plan(model, options, pool_bytes=round(_pool_gib(row, logged, last) * GIB))
    return Start(
        row=row,
        weights_gib=weights_gib,
        activation_gib=first.activation.bytes / GIB,
        runtime_gib=first.runtime.bytes / GIB,
        pool_gib=_pool_gib(row, logged, first),
        own_pool_gib=None if weights_gib is None else _pool_gib(row, weights_gib, first),
        tokens=poorest.gpu_kv_cache_tokens or 0,
        concurrency=poorest.max_concurrency or 0.0,
    )


def _stage(model: Model, options: EngineOptions, *, last: bool) -> Estimates:
    gpu = find_gpu(CARD)
    limits = batch_limits(gpu, max_model_len=options.max_model_len)
    longest = options.max_model_len or limits.tokens
    return stage_estimates(weigh(model), gpu, options, limits, max_model_len=longest, last_stage=last)


def _pool_gib(row: dict[str, str], weights_gib: float, taken: Estimates) -> float:
    total_gib = float(row["init_total_memory_gib"] or CARD_GIB)
    usable_gib = math.ceil(total_gib * GIB * float(row["gpu_memory_utilization"])) / GIB
    return usable_gib - weights_gib - (taken.activation.bytes + taken.reserve_bytes) / GIB


def _weights_gib(model: Model, row: dict[str, str], options: EngineOptions) -> float | None:
    """Of a checkpoint in 16 or 32 bits, or in fp8 by vLLM itself; of others where the model says how it is stored. With
    what vLLM loads beside it, as in its log.
    """
    own = {"None": row["dtype"].removeprefix("torch."), "fp8": "fp8"}.get(row["quantization"])
    if own is None and model.quantisation is None:
        return None
    weights = weigh(replace(model, dtype=options.dtype), own or "auto")
    size = weights.bytes_per_gpu(options.parallel)
    if size is None:
        return None
    beside = beside_weights(weights, options.parallel, capability_of(find_gpu(CARD)), rules_of(options))
    return (size + beside.bytes) / GIB
