"""Modules with the signatures of the real libraries, computing with torch: layouts and arguments, not speed.

The parameters are those of flashinfer-python 0.7.2, flash-attn 2.8 and its Hopper interface, vLLM 0.33.0 and
SGLang 0.5.23. A parameter that our calls must leave alone is taken and refused where it is given.
"""

from __future__ import annotations

import itertools
from enum import IntEnum
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from kvtool.kernels.reference.attention import causal_attention
from kvtool.kernels.rows import Softmax


def module(name: str, **members: object) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(members)
    return made


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int = 0) -> Tensor:
    """One sequence: q [Q,HQ,D], k [L,HKV,D], v [L,HKV,DV] -> [Q,HQ,DV]; window 0 is none."""
    return causal_attention(q.float(), k.float(), v.float(), Softmax(scale, window)).to(q.dtype)


def gathered(cache: Tensor, pages: Tensor, tokens: int) -> Tensor:
    """cache [P,B,H,D] and the pages of one sequence -> [tokens,H,D]."""
    assert pages.dtype == torch.int32
    assert cache.stride(-1) == 1
    return cache[pages.long()].flatten(0, 1)[:tokens]


def window_of(left: int) -> int:
    return 0 if left < 0 else left + 1


# --- FlashAttention --------------------------------------------------------------------------------------------------


def _with_kvcache(
    q: Tensor, qv: Tensor | None, k: Tensor, v: Tensor, lens: Tensor, tables: Tensor, scale: float, left: int
) -> Tensor:
    assert lens.dtype == torch.int32
    outs = []
    for i, tokens in enumerate(lens.tolist()):
        keys, values = gathered(k, tables[i], tokens), gathered(v, tables[i], tokens)
        queries = q[i]
        if qv is not None:  # scores are q k + qv v
            queries, keys = torch.cat((q[i], qv[i]), -1), torch.cat((keys, values), -1)
        outs.append(attend(queries, keys, values, scale, window_of(left)))
    return torch.stack(outs)


def flash_attn_2() -> ModuleType:
    def flash_attn_with_kvcache(
        q,
        k_cache,
        v_cache,
        k=None,
        v=None,
        rotary_cos=None,
        rotary_sin=None,
        cache_seqlens=None,
        cache_batch_idx=None,
        cache_leftpad=None,
        block_table=None,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        softcap=0.0,
        rotary_interleaved=True,
        alibi_slopes=None,
        num_splits=0,
        return_softmax_lse=False,
    ):
        assert k is v is rotary_cos is rotary_sin is cache_batch_idx is cache_leftpad is alibi_slopes is None
        assert causal
        assert k_cache.shape[1] % 256 == 0
        assert q.dtype == k_cache.dtype
        return _with_kvcache(q, None, k_cache, v_cache, cache_seqlens, block_table, softmax_scale, window_size[0])

    return module("flash_attn", flash_attn_with_kvcache=flash_attn_with_kvcache, __version__="2.8.3")


def flash_attn_3() -> ModuleType:
    def flash_attn_with_kvcache(
        q,
        k_cache,
        v_cache,
        k=None,
        v=None,
        qv=None,
        rotary_cos=None,
        rotary_sin=None,
        cache_seqlens=None,
        cache_batch_idx=None,
        cache_leftpad=None,
        page_table=None,
        cu_seqlens_q=None,
        cu_seqlens_k_new=None,
        max_seqlen_q=None,
        rotary_seqlens=None,
        q_descale=None,
        k_descale=None,
        v_descale=None,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        attention_chunk=0,
        softcap=0.0,
        rotary_interleaved=True,
        scheduler_metadata=None,
        num_splits=0,
        pack_gqa=None,
        sm_margin=0,
        return_softmax_lse=False,
    ):
        assert k is v is rotary_cos is rotary_sin is cache_batch_idx is cache_leftpad is None
        assert causal
        rank = 0 if qv is None else qv.shape[-1]
        assert scheduler_metadata == (len(q), *q.shape[1:], rank or v_cache.shape[-1], k_cache.shape[1], window_size)
        return _with_kvcache(q, qv, k_cache, v_cache, cache_seqlens, page_table, softmax_scale, window_size[0])

    def get_scheduler_metadata(
        batch_size,
        max_seqlen_q,
        max_seqlen_k,
        num_heads_q,
        num_heads_kv,
        headdim,
        cache_seqlens,
        qkv_dtype=torch.bfloat16,
        headdim_v=None,
        cu_seqlens_q=None,
        cu_seqlens_k_new=None,
        cache_leftpad=None,
        page_size=None,
        max_seqlen_k_new=0,
        causal=False,
        window_size=(-1, -1),
        attention_chunk=0,
        has_softcap=False,
        num_splits=0,
        pack_gqa=None,
        sm_margin=0,
    ):
        """What it was made for, which the call must be."""
        assert causal
        assert max_seqlen_k >= int(cache_seqlens.max())
        return batch_size, max_seqlen_q, num_heads_q, headdim, headdim_v, page_size, window_size

    functions = {
        "flash_attn_with_kvcache": flash_attn_with_kvcache,
        "get_scheduler_metadata": get_scheduler_metadata,
    }
    return module("flash_attn_interface", **functions, __version__="3.0.0")


# --- FlashInfer ------------------------------------------------------------------------------------------------------


class _Planned:
    """Pages of all sequences in a row, as `indptr` and `indices` tell."""

    def _plan(self, indptr: Tensor, indices: Tensor, lens: list[int], **kinds: Any) -> None:
        assert indptr.dtype == indices.dtype == torch.int32
        assert len(lens) == len(indptr) - 1
        bounds = indptr.tolist()
        self.pages = [indices[a:b] for a, b in itertools.pairwise(bounds)]
        self.lens, self.kinds = lens, kinds

    def _run(self, q: Tensor, starts: list[int], k: Tensor, v: Tensor) -> Tensor:
        assert q.dtype == self.kinds["q_data_type"]
        assert k.dtype == self.kinds["kv_data_type"]
        window = window_of(self.kinds.get("window_left", -1))
        return torch.cat(
            [
                attend(q[a:b], gathered(k, pages, n), gathered(v, pages, n), self.kinds["sm_scale"], window)
                for pages, n, a, b in zip(self.pages, self.lens, starts, starts[1:], strict=False)
            ]
        )


def _lens(indptr: Tensor, last_page_len: Tensor, page_size: int) -> list[int]:
    assert last_page_len.dtype == torch.int32
    assert bool((last_page_len > 0).all())
    return [(n - 1) * page_size + last for n, last in zip(indptr.diff().tolist(), last_page_len.tolist(), strict=True)]


class BatchDecodeWithPagedKVCacheWrapper(_Planned):
    def __init__(
        self,
        float_workspace_buffer,
        kv_layout="NHD",
        use_cuda_graph=False,
        use_tensor_cores=False,
        paged_kv_indptr_buffer=None,
        paged_kv_indices_buffer=None,
        paged_kv_last_page_len_buffer=None,
        backend="auto",
        jit_args=None,
    ):
        assert kv_layout == "NHD"
        assert not float_workspace_buffer.any()

    def plan(
        self,
        indptr,
        indices,
        last_page_len,
        num_qo_heads,
        num_kv_heads,
        head_dim,
        page_size,
        *,
        window_left=-1,
        logits_soft_cap=None,
        q_data_type=torch.float16,
        kv_data_type=None,
        o_data_type=None,
        sm_scale=None,
    ):
        self.heads = num_qo_heads, num_kv_heads, head_dim
        kinds = {"q_data_type": q_data_type, "kv_data_type": kv_data_type, "sm_scale": sm_scale}
        self._plan(indptr, indices, _lens(indptr, last_page_len, page_size), window_left=window_left, **kinds)

    def run(self, q, paged_kv_cache, *args, k_scale=None, v_scale=None, out=None, lse=None, return_lse=False):
        k, v = paged_kv_cache
        assert (q.shape[1], *k.shape[2:]) == self.heads
        return self._run(q, list(range(len(q) + 1)), k, v)


class BatchPrefillWithPagedKVCacheWrapper(_Planned):
    def __init__(
        self,
        float_workspace_buffer,
        kv_layout="NHD",
        use_cuda_graph=False,
        qo_indptr_buf=None,
        paged_kv_indptr_buf=None,
        paged_kv_indices_buf=None,
        paged_kv_last_page_len_buf=None,
        custom_mask_buf=None,
        mask_indptr_buf=None,
        backend="auto",
    ):
        assert kv_layout == "NHD"

    def plan(
        self,
        qo_indptr,
        paged_kv_indptr,
        paged_kv_indices,
        paged_kv_last_page_len,
        num_qo_heads,
        num_kv_heads,
        head_dim_qk,
        page_size,
        head_dim_vo=None,
        custom_mask=None,
        packed_custom_mask=None,
        causal=False,
        pos_encoding_mode="NONE",
        use_fp16_qk_reduction=False,
        sm_scale=None,
        window_left=-1,
        logits_soft_cap=None,
        rope_scale=None,
        rope_theta=None,
        q_data_type="float16",
        kv_data_type=None,
    ):
        assert causal
        self.starts = qo_indptr.tolist()
        lens = _lens(paged_kv_indptr, paged_kv_last_page_len, page_size)
        kinds = {"q_data_type": q_data_type, "kv_data_type": kv_data_type, "sm_scale": sm_scale}
        self._plan(paged_kv_indptr, paged_kv_indices, lens, window_left=window_left, **kinds)

    def run(self, q, paged_kv_cache, *args, k_scale=None, v_scale=None, out=None, lse=None, return_lse=False):
        return self._run(q, self.starts, *paged_kv_cache)


class BatchMLAPagedAttentionWrapper(_Planned):
    def __init__(
        self,
        float_workspace_buffer,
        use_cuda_graph=False,
        qo_indptr=None,
        kv_indptr=None,
        kv_indices=None,
        kv_len_arr=None,
        backend="auto",
    ):
        pass

    def plan(
        self,
        qo_indptr,
        kv_indptr,
        kv_indices,
        kv_len_arr,
        num_heads,
        head_dim_ckv,
        head_dim_kpe,
        page_size,
        causal,
        sm_scale,
        q_data_type,
        kv_data_type,
        use_profiler=False,
    ):
        assert causal
        self.starts, self.dims = qo_indptr.tolist(), (head_dim_ckv, head_dim_kpe)
        kinds = {"q_data_type": q_data_type, "kv_data_type": kv_data_type, "sm_scale": sm_scale}
        self._plan(kv_indptr, kv_indices, kv_len_arr.tolist(), **kinds)

    def run(self, q_nope, q_pe, ckv_cache, kpe_cache, out=None, lse=None, return_lse=False):
        assert (ckv_cache.shape[-1], kpe_cache.shape[-1]) == self.dims
        rows = torch.cat((ckv_cache, kpe_cache), -1).unsqueeze(2)
        return self._run(torch.cat((q_nope, q_pe), -1), self.starts, rows, ckv_cache.unsqueeze(2))


def flashinfer() -> dict[str, ModuleType]:
    mla = module("flashinfer.mla", BatchMLAPagedAttentionWrapper=BatchMLAPagedAttentionWrapper)
    top = module(
        "flashinfer",
        BatchDecodeWithPagedKVCacheWrapper=BatchDecodeWithPagedKVCacheWrapper,
        BatchPrefillWithPagedKVCacheWrapper=BatchPrefillWithPagedKVCacheWrapper,
        mla=mla,
        __path__=[],
        __version__="0.7.2",
    )
    decode = module("flashinfer.decode", xqa_batch_decode_with_kv_cache=_xqa)
    return {"flashinfer": top, "flashinfer.mla": mla, "flashinfer.decode": decode}


def _xqa(
    query,
    kv_cache,
    workspace_buffer,
    block_tables,
    seq_lens,
    max_seq_len,
    bmm1_scale=1.0,
    bmm2_scale=1.0,
    window_left=-1,
    out=None,
    sinks=None,
    kv_layout="NHD",
    enable_pdl=None,
    q_len_per_req=1,
    o_scale=1.0,
    mask=None,
):
    assert (kv_layout, bmm2_scale, q_len_per_req) == ("NHD", 1.0, 1)
    assert not workspace_buffer.any()
    assert max_seq_len >= int(seq_lens.max())
    rows = []
    for i, tokens in enumerate(seq_lens.tolist()):
        k, v = (gathered(cache.float(), block_tables[i], tokens) for cache in kv_cache)
        rows.append(attend(query[i : i + 1], k, v, bmm1_scale, window_of(window_left)))
    return torch.cat(rows)


# --- vLLM ------------------------------------------------------------------------------------------------------------


class KVQuantMode(IntEnum):
    NONE = 0
    FP8_PER_TENSOR = 1
    INT8_PER_TOKEN_HEAD = 2
    FP8_PER_TOKEN_HEAD = 3


def _unified(q, k, v, out, starts, lens, scale, left, tables, k_scale, v_scale) -> None:
    assert starts.dtype == lens.dtype == torch.int32
    k, v = k.float() * k_scale, v.float() * v_scale
    bounds = starts.tolist()
    for i, (a, b) in enumerate(itertools.pairwise(bounds)):
        tokens = int(lens[i])
        rows = gathered(k, tables[i], tokens), gathered(v, tables[i], tokens)
        out[a:b] = attend(q[a:b], *rows, scale, window_of(left))


def vllm() -> ModuleType:
    def unified_attention(
        q,
        k,
        v,
        out,
        cu_seqlens_q,
        max_seqlen_q,
        seqused_k,
        max_seqlen_k,
        softmax_scale,
        causal,
        window_size,
        block_table,
        softcap,
        q_descale,
        k_descale,
        v_descale,
        seq_threshold_3D=None,  # noqa: N803
        num_par_softmax_segments=None,
        softmax_segm_output=None,
        softmax_segm_max=None,
        softmax_segm_expsum=None,
        alibi_slopes=None,
        output_scale=None,
        qq_bias=None,
        sinks=None,
        kv_quant_mode=KVQuantMode.NONE,
        k_scale_cache=None,
        v_scale_cache=None,
    ):
        assert causal
        assert softcap == 0
        assert k_descale.shape == v_descale.shape == (len(seqused_k), k.shape[2])
        beside = kv_quant_mode in (KVQuantMode.INT8_PER_TOKEN_HEAD, KVQuantMode.FP8_PER_TOKEN_HEAD)
        assert beside == (k_scale_cache is not None)
        if k.dtype != q.dtype:
            assert kv_quant_mode != KVQuantMode.NONE
        if max_seqlen_q == 1:
            assert softmax_segm_output.shape[:3] == (len(q), q.shape[1], num_par_softmax_segments)
            assert softmax_segm_max.shape == softmax_segm_expsum.shape == softmax_segm_output.shape[:3]
            assert softmax_segm_output.shape[3] >= q.shape[2]
            assert seq_threshold_3D * k.shape[2] <= 128
        scales = [scale.unsqueeze(-1) if beside else 1.0 for scale in (k_scale_cache, v_scale_cache)]
        rest = cu_seqlens_q, seqused_k, softmax_scale, window_size[0], block_table
        _unified(q, k, v, out, *rest, *scales)

    return module("vllm.v1.attention.ops.triton_unified_attention", unified_attention=unified_attention)


def older_vllm() -> ModuleType:
    """Before the caller made the scratch of split keys: 0.11."""

    def unified_attention(
        q,
        k,
        v,
        out,
        cu_seqlens_q,
        max_seqlen_q,
        seqused_k,
        max_seqlen_k,
        softmax_scale,
        causal,
        window_size,
        block_table,
        softcap,
        q_descale,
        k_descale,
        v_descale,
        alibi_slopes=None,
        output_scale=None,
        qq_bias=None,
        sinks=None,
    ):
        assert q_descale is None
        rest = cu_seqlens_q, seqused_k, softmax_scale, window_size[0], block_table
        _unified(q, k, v, out, *rest, 1.0, 1.0)

    return module("vllm.attention.ops.triton_unified_attention", unified_attention=unified_attention)


# --- SGLang ----------------------------------------------------------------------------------------------------------


def _decode(q, k, v, o, kv_indptr, kv_indices, sm_scale) -> None:
    assert kv_indptr.dtype == torch.int32
    bounds = kv_indptr.tolist()
    assert bounds[-1] == len(kv_indices)
    for i, (a, b) in enumerate(itertools.pairwise(bounds)):
        slots = kv_indices[a:b]
        o[i] = attend(q[i : i + 1], k[slots], v[slots], sm_scale)[0]


def sglang_decode(*, older: bool = False) -> ModuleType:
    def decode_attention_fwd(
        q,
        k_buffer,
        v_buffer,
        o,
        kv_indptr,
        kv_indices,
        attn_logits,
        attn_lse,
        num_kv_splits,
        max_kv_splits,
        sm_scale,
        k_scale,
        v_scale,
        logit_cap=0.0,
        sinks=None,
        xai_temperature_len=-1,
        has_mla=False,
        use_pdl=False,
        page_size: int = 1,
    ):
        assert k_scale == v_scale == 1.0
        assert has_mla == (k_buffer.shape[-1] != v_buffer.shape[-1])
        assert page_size == 1
        before_scales(
            q,
            k_buffer,
            v_buffer,
            o,
            kv_indptr,
            kv_indices,
            attn_logits,
            attn_lse,
            num_kv_splits,
            max_kv_splits,
            sm_scale,
        )

    def before_scales(
        q,
        k_buffer,
        v_buffer,
        o,
        kv_indptr,
        kv_indices,
        attn_logits,
        attn_lse,
        num_kv_splits,
        max_kv_splits,
        sm_scale,
        logit_cap=0.0,
        sinks=None,
    ):
        assert attn_logits.shape == (*q.shape[:2], max_kv_splits, v_buffer.shape[-1])
        assert attn_lse.shape == attn_logits.shape[:3]
        assert num_kv_splits.shape == q.shape[:1]
        assert num_kv_splits.dtype == torch.int32
        assert 1 <= int(num_kv_splits.max()) <= max_kv_splits
        _decode(q, k_buffer, v_buffer, o, kv_indptr, kv_indices, sm_scale)

    place = "sglang.srt.layers.attention.triton_ops" if older else "sglang.kernels.ops.attention"
    return module(f"{place}.decode_attention", decode_attention_fwd=before_scales if older else decode_attention_fwd)


def sglang_extend() -> ModuleType:
    def extend_attention_fwd(
        q_extend,
        k_extend,
        v_extend,
        o_extend,
        k_buffer,
        v_buffer,
        qo_indptr,
        kv_indptr,
        kv_indices,
        custom_mask,
        is_causal,
        mask_indptr,
        max_len_extend,
        k_scale,
        v_scale,
        sm_scale=None,
        logit_cap=0.0,
        skip_prefix_custom_mask=True,
        sliding_window_size=-1,
        sinks=None,
        window_kv_offsets=None,
        xai_temperature_len=-1,
    ):
        assert custom_mask is mask_indptr is None
        assert is_causal
        assert all(t.is_contiguous() for t in (q_extend, k_extend, v_extend, o_extend))
        own, cached = qo_indptr.tolist(), kv_indptr.tolist()
        for i in range(len(own) - 1):
            mine, slots = slice(own[i], own[i + 1]), kv_indices[cached[i] : cached[i + 1]]
            assert own[i + 1] - own[i] <= max_len_extend
            k, v = torch.cat((k_buffer[slots], k_extend[mine])), torch.cat((v_buffer[slots], v_extend[mine]))
            o_extend[mine] = attend(q_extend[mine], k, v, sm_scale, window_of(sliding_window_size))

    return module("sglang.kernels.ops.attention.extend_attention", extend_attention_fwd=extend_attention_fwd)
