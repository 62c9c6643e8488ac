"""cuDNN's attention, by way of torch, over a contiguous copy: what a Hopper card prefills fastest with where torch is.

torch chooses FlashAttention 2 for a chunk at the end of its context, so that `sdpa` says nothing of cuDNN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from kvtool.bench.kernels.calls import Queries
from kvtool.bench.kernels.peers.peer import Prepared
from kvtool.bench.kernels.peers.sdpa import COPY_SHARE, contiguous, of_sequences, rows_of
from kvtool.bench.kernels.work import PREFILL, KernelWork
from kvtool.bench.peers import PeerError
from kvtool.kernels.pages import Pages
from kvtool.machine.memory import available_bytes
from kvtool.sizing.specs import FullSpec
from kvtool.units import format_bytes

NOTE = "over a contiguous copy of the cache with K and V for each query head, made before"
DTYPES = ("bf16", "fp16")


def version() -> str | None:
    number = torch.backends.cudnn.version()
    return None if number is None else str(number)


def why_not(work: KernelWork, device: torch.device) -> str | None:
    if work.dtype not in DTYPES or work.cache_dtype != work.dtype:
        return f"cuDNN takes bf16 or fp16 queries and K and V of their dtype, not {work.dtype} and {work.cache_dtype}"
    if not isinstance(work.spec, FullSpec) or work.part != PREFILL or work.query_len != work.context:
        return "cuDNN is asked for whole prompts of full attention: --chunk-len as long as --context"
    return None if device.type == "cuda" else "needs a GPU"


def prepare(work: KernelWork, layer: Pages, scenes: Sequence[Queries]) -> Prepared:
    group = work.model.num_heads // work.spec.kv_heads
    copied = group * work.kv_bytes
    fitting = int(COPY_SHARE * available_bytes(layer.k.device) / copied)
    if not fitting:
        raise PeerError(f"no room for a contiguous copy of {format_bytes(copied)}")
    return Prepared(calls=[_call(work, layer, scene, group) for scene in scenes[:fitting]], output=rows_of, note=NOTE)


def _call(work: KernelWork, layer: Pages, scene: Queries, group: int) -> Callable[[], Tensor]:
    """q, k and v [S,HQ,L,D]."""
    assert layer.v is not None  # full attention has V
    q = of_sequences(work, scene).contiguous()
    k, v = (
        contiguous(cache, work, scene).transpose(1, 2).repeat_interleave(group, 1).contiguous()
        for cache in (layer.k, layer.v)
    )
    attend = partial(scaled_dot_product_attention, q, k, v, is_causal=True, scale=work.spec.k_head_dim**-0.5)

    def call() -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return attend()

    return call
