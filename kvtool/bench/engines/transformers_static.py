"""transformers' `generate` over a static cache, which it compiles by itself on a GPU."""

from __future__ import annotations

from kvtool.bench.engines.checkpoint import Checkpoint
from kvtool.bench.engines.transformers import Generate, version

__all__ = ["start", "version"]


def start(checkpoint: Checkpoint) -> Generate:
    note = "" if checkpoint.device.type == "cuda" else "generate does not compile on a CPU"
    return Generate(checkpoint.in_transformers, cache="static", note=note)
