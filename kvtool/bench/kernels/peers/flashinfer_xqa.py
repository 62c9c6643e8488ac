"""FlashInfer's XQA kernel for a decode over pages, which TensorRT-LLM has too: the fastest for short sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvtool.bench.kernels.calls import Queries
from kvtool.bench.kernels.peers import flashinfer
from kvtool.bench.kernels.peers.peer import Prepared
from kvtool.bench.kernels.work import DECODE, KernelWork
from kvtool.bench.peers import PeerError, imported, why_not_here
from kvtool.kernels.pages import Pages
from kvtool.sizing.specs import LatentSpec, SlidingSpec

MODULE = "flashinfer.decode"
PAGES = (16, 32, 64, 128)
CACHE_DTYPES = ("bf16", "fp16", "fp8")

version = flashinfer.version


def why_not(work: KernelWork, device: torch.device) -> str | None:
    if work.part != DECODE or isinstance(work.spec, LatentSpec):
        return "XQA decodes over keys and values, no chunks and no latents"
    if work.dtype not in flashinfer.QUERY_DTYPES or work.cache_dtype not in CACHE_DTYPES:
        return f"XQA takes bf16 or fp16 queries and no {work.cache_dtype} cache for {work.dtype} ones"
    if work.block_size not in PAGES:
        return f"XQA takes pages of {', '.join(map(str, PAGES))} tokens, not of {work.block_size}"
    return why_not_here(device, MODULE)


def prepare(work: KernelWork, layer: Pages, scenes: Sequence[Queries]) -> Prepared:
    library = imported(MODULE)
    if not hasattr(library, "xqa_batch_decode_with_kv_cache"):
        raise PeerError(f"{MODULE} has no xqa_batch_decode_with_kv_cache")
    # Counters lie in it, which must be zero the first time.
    workspace = torch.zeros(flashinfer.WORKSPACE_BYTES, dtype=torch.uint8, device=layer.k.device)
    calls: list[Callable[[], Any]] = [
        partial(library.xqa_batch_decode_with_kv_cache, **_arguments(work, layer, scene, workspace)) for scene in scenes
    ]
    return Prepared(calls=calls, output=_as_is, note="XQA, which plans nothing on the host")


def _arguments(work: KernelWork, layer: Pages, scene: Queries, workspace: Tensor) -> dict[str, Any]:
    return {
        "query": scene.q,
        "kv_cache": (layer.k, layer.v),
        "workspace_buffer": workspace,
        "block_tables": scene.block_tables,
        "seq_lens": scene.seq_lens,
        "max_seq_len": work.context,
        "bmm1_scale": work.spec.k_head_dim**-0.5,
        "bmm2_scale": 1.0,
        "window_left": work.spec.window - 1 if isinstance(work.spec, SlidingSpec) else -1,
        "kv_layout": "NHD",
    }


def _as_is(out: Any) -> Tensor:
    rows: Tensor = out
    return rows
