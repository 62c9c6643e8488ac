"""SGLang's Triton kernels, called as its attention backend calls them: token-granular indices into the pool."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from kvtool.bench.kernels.calls import Queries
from kvtool.bench.kernels.peers.peer import Prepared
from kvtool.bench.kernels.work import DECODE, KernelWork
from kvtool.bench.peers import distribution_version, imported, why_not_here
from kvtool.kernels.pages import Pages
from kvtool.sizing.specs import LatentSpec, SlidingSpec
from kvtool.units import ceil_div

PLACES = ("sglang.kernels.ops.attention", "sglang.srt.layers.attention.triton_ops")
DECODE_MODULES = tuple(f"{place}.decode_attention" for place in PLACES)
EXTEND_MODULES = tuple(f"{place}.extend_attention" for place in PLACES)
# Of its server: most splits of a sequence's keys (of latents: as many as there are blocks of keys, or multiprocessors).
MAX_SPLITS = 8
LATENT_BLOCK = 32
HEADS_A_PROGRAM = 16
NOTE = "the chunk's own K and V contiguous, as a step has them"


def version() -> str | None:
    return distribution_version("sglang")


def why_not(work: KernelWork, device: torch.device) -> str | None:
    if "per_token_head" in work.cache_dtype:
        return f"SGLang's Triton kernels know no {work.cache_dtype} cache"
    if work.part != DECODE and work.cache_dtype != work.dtype:
        return f"a chunk's own K and V are not {work.cache_dtype} for SGLang's Triton kernel"
    return why_not_here(device, *(DECODE_MODULES if work.part == DECODE else EXTEND_MODULES))


def prepare(work: KernelWork, layer: Pages, scenes: Sequence[Queries]) -> Prepared:
    k = layer.k.flatten(0, 1)
    if isinstance(work.spec, LatentSpec):
        k = k.unsqueeze(1)
        v = k[..., : work.spec.kv_lora_rank]
    else:
        assert layer.v is not None  # only a latent has no V of its own
        v = layer.v.flatten(0, 1)
    if work.part != DECODE:
        return Prepared(calls=[_extend(work, k, v, scene) for scene in scenes], output=_as_is, note=NOTE)
    splits = decode_splits(work, k.device)
    return Prepared(calls=[_decode(work, k, v, scene, splits) for scene in scenes], output=_as_is)


def _decode(work: KernelWork, k: Tensor, v: Tensor, scene: Queries, splits: dict[str, Any]) -> Callable[[], Tensor]:
    attend = imported(*DECODE_MODULES).decode_attention_fwd
    fill = partial(
        attend,
        q=scene.q,
        k_buffer=k,
        v_buffer=v,
        kv_indptr=_starts(work, scene, work.tokens_in_use),
        kv_indices=_slots(work, scene, work.context - work.tokens_in_use, work.context),
        sm_scale=work.spec.k_head_dim**-0.5,
        **splits,
        **_known(attend, k_scale=1.0, v_scale=1.0, has_mla=isinstance(work.spec, LatentSpec)),
    )
    return _filling(fill, "o", scene, work.out_dim)


def _extend(work: KernelWork, k: Tensor, v: Tensor, scene: Queries) -> Callable[[], Tensor]:
    attend = imported(*EXTEND_MODULES).extend_attention_fwd
    cached = work.context - work.query_len
    prefix = work.tokens_in_use - work.query_len
    own = _slots(work, scene, cached, work.context)
    fill = partial(
        attend,
        q_extend=scene.q,
        k_extend=k[own].contiguous(),
        v_extend=v[own].contiguous(),
        k_buffer=k,
        v_buffer=v,
        qo_indptr=_starts(work, scene, work.query_len),
        kv_indptr=_starts(work, scene, prefix),
        kv_indices=_slots(work, scene, cached - prefix, cached),
        custom_mask=None,
        is_causal=True,
        mask_indptr=None,
        max_len_extend=work.query_len,
        sm_scale=work.spec.k_head_dim**-0.5,
        sliding_window_size=work.spec.window - 1 if isinstance(work.spec, SlidingSpec) else -1,
        **_known(attend, k_scale=1.0, v_scale=1.0),
    )
    return _filling(fill, "o_extend", scene, work.out_dim)


def decode_splits(work: KernelWork, device: torch.device) -> dict[str, Any]:
    """How its backend splits the keys of sequences of one length, and the scratch for it."""
    on_gpu = device.type == "cuda"
    processors = torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else 1
    most = MAX_SPLITS
    parameters = signature(imported(*DECODE_MODULES).decode_attention_fwd).parameters
    if isinstance(work.spec, LatentSpec) and "has_mla" in parameters:
        most = max(most, min(_power_of_2(processors), _power_of_2(ceil_div(work.context, LATENT_BLOCK))))
    splits = num_splits(work, processors, most)
    shape = (work.batch_size, work.model.num_heads, most)
    return {
        "attn_logits": torch.empty(*shape, work.out_dim, dtype=torch.float32, device=device),
        "attn_lse": torch.empty(shape, dtype=torch.float32, device=device),
        "num_kv_splits": torch.full((work.batch_size,), splits, dtype=torch.int32, device=device),
        "max_kv_splits": most,
    }


def num_splits(work: KernelWork, processors: int, most: int) -> int:
    """Its rule for sequences of one length: more splits for longer ones, as programs for all multiprocessors."""
    tokens, heads = work.tokens_in_use, work.model.num_heads
    group = heads // work.spec.kv_heads
    programs = work.batch_size * (heads if group == 1 else ceil_div(heads, min(HEADS_A_PROGRAM, group)))
    wanted = int(processors * max(math.log2(tokens / 64), 1.0))
    chunk = ceil_div(tokens, min(ceil_div(wanted, programs), most))
    return ceil_div(tokens, chunk)


def _slots(work: KernelWork, scene: Queries, first: int, last: int) -> Tensor:
    """Where tokens first .. last-1 of every sequence are in the pool, sequence after sequence."""
    tokens = torch.arange(first, last, device=scene.q.device)
    pages = scene.block_tables.long()[:, tokens // work.block_size]
    return (pages * work.block_size + tokens % work.block_size).flatten()


def _starts(work: KernelWork, scene: Queries, each: int) -> Tensor:
    return torch.arange(work.batch_size + 1, dtype=torch.int32, device=scene.q.device) * each


def _known(attend: Callable[..., Any], **arguments: object) -> dict[str, object]:
    """Those of the arguments that this version of the kernel has."""
    return {name: value for name, value in arguments.items() if name in signature(attend).parameters}


def _filling(fill: Callable[..., Any], out_name: str, scene: Queries, out_dim: int) -> Callable[[], Tensor]:
    def call() -> Tensor:
        out = scene.q.new_empty(*scene.q.shape[:2], out_dim)
        fill(**{out_name: out})
        return out

    return call


def _power_of_2(value: int) -> int:
    return 1 << (value - 1).bit_length()


def _as_is(out: Any) -> Tensor:
    rows: Tensor = out
    return rows
