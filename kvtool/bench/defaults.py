"""What `kvtool bench` runs when it is not told: enough for a picture, within a minute on two CPU cores."""

from __future__ import annotations

from typing import Any

from kvtool.bench.options import BenchOptions
from kvtool.machine.device import resolve_device

CPU_MODEL, GPU_MODEL = "smollm2-135m", "llama-3.2-1b"

CPU_GRID: dict[str, Any] = {
    "input_lens": (64, 320),  # 320: half and nine tenths of it are whole pages
    "batch_sizes": (1, 8),
    "output_len": 8,
    "prefix_output_len": 2,
    "no_cache_output_len": 4,
    "num_iters": 3,
    "num_iters_warmup": 1,
    "no_cache_lens": (64, 128, 256),
}
GPU_GRID: dict[str, Any] = {
    "input_lens": (1024, 8192),
    "batch_sizes": (1, 8, 32),
    "output_len": 64,
    "prefix_output_len": 8,
    "no_cache_output_len": 8,
    "num_iters": 5,
    "num_iters_warmup": 2,
    "no_cache_lens": (512, 2048, 8192),
}


def default_model(device: str) -> str:
    """A larger one on a GPU."""
    return GPU_MODEL if _on_gpu(device) else CPU_MODEL


def bench_options(device: str, **given: Any) -> BenchOptions:
    """The options given, and the device's defaults for those that are None. Lengths given rule every part."""
    grid = dict(GPU_GRID if _on_gpu(device) else CPU_GRID)
    if given.get("input_lens"):
        grid["no_cache_lens"] = given["input_lens"]
    if given.get("output_len") is not None:
        grid["prefix_output_len"] = grid["no_cache_output_len"] = given["output_len"]
    grid.update({name: value for name, value in given.items() if value is not None})
    return BenchOptions(**grid)


def _on_gpu(device: str) -> bool:
    return resolve_device(device).type == "cuda"
