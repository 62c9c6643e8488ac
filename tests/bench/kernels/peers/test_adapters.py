"""Each peer computes what ours do, on the same pages: torch's own for real, libraries as modules of their shape."""

from __future__ import annotations

import shutil
import sys
from contextlib import nullcontext
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from kvtool.bench.kernels.calls import Measurement, filled_pool
from kvtool.bench.kernels.options import KernelsOptions
from kvtool.bench.kernels.peers import (
    cudnn,
    flash_attn,
    flashinfer,
    flashinfer_xqa,
    flex,
    gathered,
    naive,
    sdpa,
    sglang_triton,
    vllm_triton,
)
from kvtool.bench.kernels.peers.peer import load_peer
from kvtool.bench.kernels.work import KernelWork, plan
from kvtool.bench.peers import PeerError
from kvtool.catalog.model import FullAttention, LatentAttention, Layer, SlidingAttention
from kvtool.catalog.resolve import inline_model
from kvtool.kernels import load_kernels
from kvtool.sizing.formats import CACHE_FORMATS
from tests.bench import fakes

TINY = inline_model(layers=1, heads=4, kv_heads=2, head_dim=16)
FULL = FullAttention(kv_heads=2, k_head_dim=16, v_head_dim=16)
SLIDING = SlidingAttention(kv_heads=2, k_head_dim=16, v_head_dim=16, window=20)
LATENT = LatentAttention(kv_lora_rank=32, qk_rope_head_dim=16, qk_nope_head_dim=24, v_head_dim=24)
CPU, GPU = torch.device("cpu"), torch.device("cuda")
CONTEXT, CHUNK = 45, 24  # neither fills its last page


def work_of(
    part: str, cache: Any = FULL, *, cache_dtype: str = "bf16", dtype: str = "bf16", page: int = 16
) -> KernelWork:
    model = replace(TINY, layers=(Layer(cache=cache),))
    grid = KernelsOptions(contexts=(CONTEXT,), batch_sizes=(3,), chunk_len=CHUNK, num_iters=1, block_sizes=(page,))
    return next(w for w in plan(model, grid, [CACHE_FORMATS[cache_dtype]], dtype) if w.part == part)


def measurement(work: KernelWork, num_calls: int = 3) -> Measurement:
    """Pages that no call uses, and slots past the end, hold NaN: who reads them is found out."""
    random = torch.Generator().manual_seed(0)
    pool = filled_pool(work, 2 * num_calls * work.call_pages, CPU, random)
    made = Measurement(work, load_kernels("torch"), pool, num_calls, random)
    used = torch.cat([scene.block_tables[:, work.first_page :].flatten() for scene in made.scenes]).long()
    for tensor in pool.layers[0].tensors:
        if tensor.dtype.is_floating_point and tensor.dtype.itemsize > 1:
            kept = tensor[used].clone()
            tensor.fill_(float("nan"))
            tensor[used] = kept
    return made


def assert_all_scenes_equal_the_reference(name: str, work: KernelWork) -> None:
    """Not only the first scene, which a run checks: each on its own pages."""
    made = measurement(work)
    prepared = load_peer(name).prepare(work, made.layer, made.scenes)
    assert len(prepared.calls) == len(made.scenes)
    outputs = [prepared.output(call()).clone() for call in prepared.calls]
    for scene, output in zip(made.scenes, outputs, strict=True):
        made.queries = scene
        made.__dict__.pop("_expected", None)
        check = made.check_output(output)
        assert check.outputs_equal, f"{name} {work.name}: {check.text}, off by {check.max_abs_diff}"


def install(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    for made in modules:
        parts = made.__name__.split(".")
        for depth in range(1, len(parts)):
            parent = ".".join(parts[:depth])
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, fakes.module(parent, __path__=[]))
        monkeypatch.setitem(sys.modules, made.__name__, made)


# --- torch's own, for real -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize(("part", "cache"), [(p, c) for p in ("decode", "prefill") for c in (FULL, SLIDING)])
def test_sdpa(part: str, cache: object, dtype: str) -> None:
    assert_all_scenes_equal_the_reference("sdpa", work_of(part, cache, cache_dtype=dtype, dtype=dtype))


def test_sdpa_over_latents_and_what_it_refuses() -> None:
    assert_all_scenes_equal_the_reference("sdpa", work_of("decode", LATENT))
    assert "would hold the scores" in (sdpa.why_not(work_of("prefill", LATENT), CPU) or "")
    assert "fp8 cache is no such" in (sdpa.why_not(work_of("decode", cache_dtype="fp8"), CPU) or "")
    assert sdpa.why_not(work_of("decode"), CPU) is None


def test_sdpa_takes_as_many_copies_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_of("decode")
    made = measurement(work)
    monkeypatch.setattr(sdpa, "available_bytes", lambda device: int(2 * work.kv_bytes / sdpa.COPY_SHARE))
    assert len(sdpa.prepare(work, made.layer, made.scenes).calls) == 2
    monkeypatch.setattr(sdpa, "available_bytes", lambda device: work.kv_bytes)
    with pytest.raises(PeerError, match="no room for a contiguous copy"):
        sdpa.prepare(work, made.layer, made.scenes)


def test_cudnn_computes_whole_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, which has no cuDNN to choose: the copies, the heads and the mask are those that it would be given."""
    monkeypatch.setattr(cudnn, "sdpa_kernel", lambda backend: nullcontext())
    whole = replace(work_of("prefill"), context=CHUNK)
    assert_all_scenes_equal_the_reference("cudnn", whole)
    assert cudnn.why_not(whole, GPU) is None
    assert cudnn.why_not(whole, CPU) == "needs a GPU"
    for other in (work_of("prefill"), work_of("decode"), replace(work_of("prefill", SLIDING), context=CHUNK)):
        assert "whole prompts" in (cudnn.why_not(other, GPU) or "")
    assert "bf16 and fp8" in (cudnn.why_not(work_of("prefill", cache_dtype="fp8"), GPU) or "")
    monkeypatch.setattr(cudnn, "available_bytes", lambda device: whole.kv_bytes)
    with pytest.raises(PeerError, match="no room for a contiguous copy"):
        cudnn.prepare(whole, measurement(whole).layer, [])


@pytest.mark.parametrize("name", ["naive", "gathered"])
@pytest.mark.parametrize(("part", "cache"), [(p, c) for p in ("decode", "prefill") for c in (FULL, SLIDING)])
def test_ways_without_tiles_and_without_pages(name: str, part: str, cache: object) -> None:
    assert_all_scenes_equal_the_reference(name, work_of(part, cache, cache_dtype="fp32", dtype="fp32"))


def test_what_they_move_besides() -> None:
    """Scores and probabilities of 4 heads, each written and read; the cache, written and read once more."""
    work = work_of("prefill")
    made = measurement(work)
    scores = CHUNK * CONTEXT * 4 * 2
    assert naive.prepare(work, made.layer, made.scenes).moved_bytes == work.bytes.moved + 4 * scores
    cache = CONTEXT * 2 * (16 + 16) * 2
    assert gathered.prepare(work, made.layer, made.scenes).moved_bytes == work.bytes.moved + 2 * cache


@pytest.mark.parametrize(
    ("name", "why"), [("naive", "no room for .* of scores"), ("gathered", "no room for a copy of")]
)
def test_they_refuse_what_there_is_no_room_for(name: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_of("prefill")
    made = measurement(work)
    peer = load_peer(name)
    monkeypatch.setattr(peer, "available_bytes", lambda device: work.kv_bytes)
    with pytest.raises(PeerError, match=why):
        peer.prepare(work, made.layer, made.scenes)
    assert "latents" in (peer.why_not(work_of("decode", LATENT), CPU) or "")
    assert "fp8 cache is no such" in (peer.why_not(work_of("decode", cache_dtype="fp8"), CPU) or "")


def test_flex_masks_are_those_of_the_pages() -> None:
    """Without compiling: every slot of the pool that a query may see, by the mask and by the block lists."""
    for cache in (FULL, SLIDING):
        for part in ("decode", "prefill"):
            work = work_of(part, cache)
            made = measurement(work)
            tables, num_pages = made.scenes[1].block_tables, made.pool.num_pages
            mask_mod = flex.physical_mask(work, tables, num_pages)
            some, whole = flex.visible_pages(work, CPU)
            q = torch.arange(work.query_len)[:, None]
            slots = torch.arange(num_pages * work.block_size)
            window = work.spec.window if cache is SLIDING else CONTEXT
            for b in range(work.batch_size):
                seen = mask_mod(torch.tensor(b), torch.tensor(0), q, slots)
                for i in range(work.query_len):
                    last = CONTEXT - work.query_len + i
                    tokens = torch.arange(max(0, last - window + 1), last + 1)
                    expected = tables[b, tokens // 16] * 16 + tokens % 16
                    assert sorted(seen[i].nonzero().flatten().tolist()) == sorted(expected.tolist())
                    assert bool((some | whole)[0, tokens // 16].all())
            assert not bool((some & whole).any())


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling FlexAttention for a CPU needs g++")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("part", "cache"), [("decode", FULL), ("prefill", SLIDING)])
def test_flex_compiled(part: str, cache: object) -> None:
    assert_all_scenes_equal_the_reference("flex", work_of(part, cache))


def test_flex_refuses_what_its_int32_offsets_do_not_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_of("decode")
    made = measurement(work)
    monkeypatch.setattr(flex, "MAX_ELEMENTS", made.layer.k.numel() - 1)
    with pytest.raises(PeerError, match=r"int32 offsets do not reach \d+ elements: at most 2\^31"):
        flex.prepare(work, made.layer, made.scenes)
    assert "fp8 cache" in (flex.why_not(work_of("decode", cache_dtype="fp8"), CPU) or "")


# --- libraries, by modules of their shape ----------------------------------------------------------------------------

CASES = [(part, cache) for part in ("decode", "prefill") for cache in (FULL, SLIDING, LATENT)]


@pytest.mark.parametrize(("part", "cache"), CASES)
def test_flashinfer(part: str, cache: object, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, *fakes.flashinfer().values())
    assert_all_scenes_equal_the_reference("flashinfer", work_of(part, cache))
    assert flashinfer.why_not(work_of(part, cache), GPU) is None
    assert flashinfer.why_not(work_of(part, cache), CPU) == "needs a GPU"
    assert "fp32" in (flashinfer.why_not(work_of("decode", cache_dtype="fp32", dtype="fp32"), GPU) or "")
    assert "int8_per_token_head" in (
        flashinfer.why_not(work_of("decode", cache_dtype="int8_per_token_head"), GPU) or ""
    )


def test_flashinfer_reads_an_fp8_cache_and_makes_few_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, *fakes.flashinfer().values())
    assert_all_scenes_equal_the_reference("flashinfer", work_of("decode", cache_dtype="fp8"))
    work = work_of("decode")
    made = measurement(work, num_calls=20)
    assert len(flashinfer.prepare(work, made.layer, made.scenes).calls) == flashinfer.MAX_PLANS


@pytest.mark.parametrize("cache", [FULL, SLIDING])
def test_flashinfer_xqa(cache: object, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, *fakes.flashinfer().values())
    for cache_dtype in ("bf16", "fp8"):
        work = work_of("decode", cache, cache_dtype=cache_dtype)
        assert flashinfer_xqa.why_not(work, GPU) is None
        assert_all_scenes_equal_the_reference("flashinfer-xqa", work)
    assert "no chunks" in (flashinfer_xqa.why_not(work_of("prefill", cache), GPU) or "")
    assert "not of 24" in (flashinfer_xqa.why_not(work_of("decode", cache, page=24), GPU) or "")
    assert "no fp8_e5m2 cache" in (flashinfer_xqa.why_not(work_of("decode", cache_dtype="fp8_e5m2"), GPU) or "")
    monkeypatch.delattr(sys.modules["flashinfer.decode"], "xqa_batch_decode_with_kv_cache")
    with pytest.raises(PeerError, match="has no xqa_batch_decode"):
        flashinfer_xqa.prepare(work_of("decode"), measurement(work_of("decode")).layer, [])


@pytest.mark.parametrize(("part", "cache"), CASES)
def test_flash_attn_3(part: str, cache: object, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fakes.flash_attn_3())
    monkeypatch.setattr(flash_attn, "_is_newer", lambda device: True)
    assert flash_attn.why_not(work_of(part, cache), GPU) is None
    assert_all_scenes_equal_the_reference("flash-attn", work_of(part, cache))


@pytest.mark.parametrize("part", ["decode", "prefill"])
def test_flash_attn_2_takes_large_pages_only(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fakes.flash_attn_2())
    monkeypatch.setattr(flash_attn, "_is_newer", lambda device: False)
    for cache in (FULL, SLIDING):
        assert flash_attn.why_not(work_of(part, cache, page=256), GPU) is None
        assert_all_scenes_equal_the_reference("flash-attn", work_of(part, cache, page=256))
    assert "--block-size 256" in (flash_attn.why_not(work_of(part), GPU) or "")
    assert "no kernel for latents" in (flash_attn.why_not(work_of(part, LATENT, page=256), GPU) or "")
    assert "bf16 and fp8" in (flash_attn.why_not(work_of(part, cache_dtype="fp8"), GPU) or "")


def test_flash_attn_3_is_for_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fakes.flash_attn_3())
    for major, newer in ((9, True), (10, False), (8, False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, major=major: (major, 0))
        assert flash_attn._is_newer(GPU) is newer
    assert not flash_attn._is_newer(CPU)


@pytest.mark.parametrize("part", ["decode", "prefill"])
@pytest.mark.parametrize("cache_dtype", ["bf16", "fp8", "fp8_e5m2", "int8_per_token_head", "fp8_per_token_head"])
def test_vllm_triton(part: str, cache_dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fakes.vllm())
    for cache in (FULL, SLIDING):
        work = work_of(part, cache, cache_dtype=cache_dtype)
        assert vllm_triton.why_not(work, GPU) is None
        assert_all_scenes_equal_the_reference("vllm-triton", work)
    assert "not for latents" in (vllm_triton.why_not(work_of(part, LATENT), GPU) or "")


def test_an_older_vllm_makes_its_own_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fakes.older_vllm())
    for part in ("decode", "prefill"):
        assert_all_scenes_equal_the_reference("vllm-triton", work_of(part))
    assert "knows no fp8 cache" in (vllm_triton.why_not(work_of("decode", cache_dtype="fp8"), GPU) or "")


@pytest.mark.parametrize(("part", "cache"), CASES)
def test_sglang_triton(part: str, cache: object, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fakes.sglang_decode(), fakes.sglang_extend())
    assert sglang_triton.why_not(work_of(part, cache), GPU) is None
    assert_all_scenes_equal_the_reference("sglang-triton", work_of(part, cache))


def test_an_older_sglang_has_no_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fakes.sglang_decode(older=True))
    assert_all_scenes_equal_the_reference("sglang-triton", work_of("decode"))
    assert "not importable" in (sglang_triton.why_not(work_of("prefill"), GPU) or "")
    assert "per_token_head" in (sglang_triton.why_not(work_of("decode", cache_dtype="fp8_per_token_head"), GPU) or "")


@pytest.mark.parametrize(
    ("context", "batch_size", "splits"),
    [
        (1024, 1, 8),  # 132 x 4 programs wanted, 8 there: 66 splits, at most 8
        (32768, 32, 5),  # 132 x 9 = 1188 wanted, 32 x 8 = 256 there
        (64, 64, 1),  # 132 wanted, 512 there
    ],
)
def test_sglang_splits_of_an_h100(context: int, batch_size: int, splits: int) -> None:
    model = inline_model(layers=1, heads=32, kv_heads=8, head_dim=128)
    grid = KernelsOptions(contexts=(context,), batch_sizes=(batch_size,), chunk_len=16, num_iters=1)
    work = plan(model, grid, [CACHE_FORMATS["bf16"]], "bf16")[0]
    assert sglang_triton.num_splits(work, processors=132, most=8) == splits
