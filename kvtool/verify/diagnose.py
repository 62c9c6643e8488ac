"""Which flag would make the prediction agree with the log: each that the log does not tell is tried at other values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from kvtool.catalog.gpus import Gpu, find_gpu
from kvtool.sizing.dtypes import AUTO
from kvtool.sizing.engines.flags import BY_FIELD
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.parallel import DEGREES
from kvtool.system.errors import KvtoolError
from kvtool.verify.facts import Figure, LogFacts
from kvtool.verify.inputs import Started
from kvtool.verify.terms.vllm import plan_rows, planned

_TRIED: dict[str, tuple[Any, ...]] = {
    "max_num_batched_tokens": (512, 1024, 2048, 4096, 8192, 16384, 32768),
    "kv_cache_dtype": ("bf16", "fp8", "int8_per_token_head"),
    "tp": (1, 2, 4, 8),
    "async_scheduling": (True, False),
    "enable_prefix_caching": (True, False),
    "mamba_ssm_cache_dtype": ("bf16", "fp32"),
    "hybrid_kv_cache_manager": (True, False),
    "block_size": (16, 32, 64, 128),
    "gpu": ("H100-SXM-80GB", "A100-SXM-80GB", "L40S-48GB"),  # kernels of each kind, which set the size of blocks
}


def agreeing_flags(facts: LogFacts, started: Started, pool: Figure | None, *, card: Gpu) -> list[str]:
    """Single flags, with values, under which every exact number of the log comes out. `card` is the one planned for."""
    tried = _alternatives(started, replace(started.options, gpu=card))
    return [flag for flag, options in tried if _agrees(facts, replace(started, options=options), pool)]


def untold_flags(started: Started) -> Iterator[tuple[str, Started]]:
    """Flags that neither the log nor the user gives, each with another value and the start that it would make."""
    for flag, options in _alternatives(started, started.options):
        yield flag, replace(started, options=options)


def _agrees(facts: LogFacts, started: Started, pool: Figure | None) -> bool:
    try:
        rows = list(plan_rows(facts, planned(facts, started, pool), pool))
    except KvtoolError:
        return False
    return all(row.verdict in ("equal", "unlogged") for row in rows) and any(row.verdict == "equal" for row in rows)


def _alternatives(started: Started, options: EngineOptions) -> Iterator[tuple[str, EngineOptions]]:
    """Likeliest first; a flag that the log or the user gives stays as it is."""
    for name, values in _TRIED.items():
        if started.inputs.get(name, AUTO) != AUTO:
            continue
        for value in values:
            if name == "tp":
                changed = replace(options, parallel=replace(options.parallel, tp=value))
            elif name == "gpu":
                changed = options if started.options.gpu or started.kernels else replace(options, gpu=find_gpu(value))
            else:
                changed = replace(options, **{name: value})
            if changed != options:
                yield _spelled(name, value), changed


def _spelled(name: str, value: object) -> str:
    """`--max-num-batched-tokens 2048`, `--no-async-scheduling`."""
    if name == "gpu":
        return f"the kernels of --gpu {value}"
    return f"--{name} {value}" if name in DEGREES else BY_FIELD[name].said(value)
