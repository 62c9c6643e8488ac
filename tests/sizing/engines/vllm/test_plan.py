"""What holds of any plan, what vLLM refuses, and what its defaults are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtool.catalog.gpus import find_gpu
from kvtool.catalog.model import (
    CacheKind,
    ChunkedAttention,
    FullAttention,
    LatentAttention,
    Layer,
    Mamba2,
    Model,
    SlidingAttention,
)
from kvtool.catalog.models_yaml import load_catalogue
from kvtool.catalog.resolve import inline_model
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.vllm import VllmPlan, assumptions, plan, size_engine
from kvtool.sizing.engines.vllm.document import inexact
from kvtool.sizing.engines.vllm.plan import request_blocks
from kvtool.sizing.parallel import Parallel
from kvtool.system.errors import KvtoolError
from tests.sizing.engines.vllm.recorded import cases

CATALOGUE = load_catalogue()
KINDS = (
    "llama-3.1-8b",
    "deepseek-v3.2",
    "gpt-oss-120b",
    "qwen3-next-80b-a3b-instruct",
    "gemma-4-e2b",
    "kimi-linear-48b-a3b-instruct",
)


def vllm(model: str | Model, *, pool_bytes: int = 40 << 30, **flags: object) -> VllmPlan:
    found = CATALOGUE.get(model) if isinstance(model, str) else model
    flags.setdefault("max_model_len", None if flags.get("auto_fit") else 32768)
    return plan(found, EngineOptions(name="vllm", **flags), pool_bytes=pool_bytes)  # type: ignore[arg-type]


def refusal(model: str | Model, **flags: object) -> str:
    found = vllm(model, **flags)  # type: ignore[arg-type]
    assert found.refusal is not None
    assert "\n" not in found.refusal
    assert found.log_line is None
    return found.refusal


@given(st.sampled_from(KINDS), st.integers(1 << 28, 1 << 38), st.integers(0, 1 << 34))
def test_more_memory_never_gives_less(model: str, pool_bytes: int, more: int) -> None:
    small, large = (vllm(model, pool_bytes=size, auto_fit=True) for size in (pool_bytes, pool_bytes + more))
    assert (small.num_blocks or 0) <= (large.num_blocks or 0)
    assert (small.max_model_len or 0) <= (large.max_model_len or 0)
    fixed, roomier = (vllm(model, pool_bytes=size) for size in (pool_bytes, pool_bytes + more))
    assert roomier.fits or not fixed.fits
    assert (fixed.max_concurrency or 0) <= (roomier.max_concurrency or 0)


@given(st.sampled_from(KINDS), st.integers(1, 1 << 18), st.integers(0, 1 << 18))
def test_longer_requests_never_take_fewer_blocks(model: str, tokens: int, more: int) -> None:
    found = vllm(model)
    assert request_blocks(found, tokens) <= request_blocks(found, tokens + more)


@given(st.sampled_from(KINDS), st.integers(1 << 28, 1 << 34))
def test_the_longest_that_fits_fits_and_one_more_token_does_not(model: str, pool_bytes: int) -> None:
    found = vllm(model, pool_bytes=pool_bytes, auto_fit=True)
    if found.max_model_len is None:
        assert found.refusal == (
            "Cannot auto-fit max_model_len: not enough GPU memory available to serve even a single token."
        )
        return
    assert found.fits
    usable = found.pool_bytes - max(found.bytes_per_block)
    assert request_blocks(found, found.max_model_len) * max(found.bytes_per_block) <= usable
    if found.max_model_len < found.inputs.max_model_len:
        assert request_blocks(found, found.max_model_len + 1) * max(found.bytes_per_block) > usable


def test_what_is_missing_is_exactly_what_would_make_it_fit() -> None:
    """Llama-3.1-8B: 2048 blocks of 2 MiB and the null block."""
    short = vllm("llama-3.1-8b", pool_bytes=1 << 30)
    missing = 2049 * (2 << 20) - (1 << 30)
    assert short.refusal is not None
    assert short.refusal.endswith(f" {missing:,} bytes are missing.")
    assert not vllm("llama-3.1-8b", pool_bytes=(1 << 30) + missing - 1).fits
    assert vllm("llama-3.1-8b", pool_bytes=(1 << 30) + missing).fits


def test_a_step_must_have_a_token_for_every_sequence() -> None:
    said = "max_num_batched_tokens ({}) must be greater than or equal to max_num_seqs ({})."
    assert refusal("llama-3.1-8b", max_num_batched_tokens=100, max_num_seqs=200) == said.format(100, 200)
    assert refusal("llama-3.1-8b", max_num_seqs=100_000) == said.format(8192, 100_000)
    assert vllm("llama-3.1-8b", max_num_batched_tokens=100).inputs.max_num_seqs == 100


def test_no_memory_at_all_is_refused_too() -> None:
    assert refusal("llama-3.1-8b", pool_bytes=0) == "No available memory for the cache blocks."


def test_two_numbers_tell_what_a_long_request_takes() -> None:
    for model in KINDS:
        found = vllm(model, max_model_len=1 << 17)
        engine = size_engine(found)
        assert engine.fixed_bytes_per_request is not None
        assert engine.slope_bytes_per_token is not None
        reserved = request_blocks(found, 1 << 17) * max(found.bytes_per_block)
        estimate = engine.fixed_bytes_per_request + engine.slope_bytes_per_token * (1 << 17)
        blocks_off = (reserved - estimate) / max(found.bytes_per_block)
        assert abs(blocks_off) <= len(found.groups), model


@pytest.mark.parametrize(
    ("gpu", "tokens", "sequences"),
    [
        ("H100-SXM-80GB", 8192, 1024),
        ("A100-SXM-80GB", 2048, 256),
        ("L40S-48GB", 2048, 256),
        ("H200-SXM-141GB", 8192, 1024),
        ("B200-SXM-180GB", 16384, 1024),
    ],
)
def test_defaults_follow_the_card(gpu: str, tokens: int, sequences: int) -> None:
    inputs = vllm("llama-3.1-8b", gpu=find_gpu(gpu)).inputs
    assert (inputs.max_num_batched_tokens, inputs.max_num_seqs) == (tokens, sequences)


def test_batches_in_flight() -> None:
    assert vllm("llama-3.1-8b").inputs.in_flight_tokens == 2 * 8192
    assert vllm("llama-3.1-8b", async_scheduling=False).inputs.in_flight_tokens == 8192
    assert vllm("llama-3.1-8b", parallel=Parallel(pp=4)).inputs.in_flight_tokens == 5 * 8192
    assert vllm("llama-3.1-8b", max_num_seqs=2, max_model_len=1000).inputs.max_num_batched_tokens == 2000
    assert vllm("llama-3.1-8b", max_num_batched_tokens=512).inputs.max_num_seqs == 512


def test_without_max_model_len_it_is_the_models_own() -> None:
    assert vllm("llama-3.1-8b", max_model_len=None).max_model_len == 131072
    shape = inline_model(layers=2, heads=8, kv_heads=2, head_dim=64)
    with pytest.raises(KvtoolError, match="give --max-model-len"):
        vllm(shape, max_model_len=None)


def test_dropped_architectures_are_refused_in_vllms_words() -> None:
    assert refusal("MiniMaxAI/MiniMax-Text-01-hf").startswith(
        "Model architecture MiniMaxForCausalLM was supported in vLLM until v0.23.0"
    )


def test_layouts_that_vllm_refuses() -> None:
    assert refusal("gemma-3-27b", parallel=Parallel(tp=32, dcp=2)) == "DCP not support sliding window."
    assert "is on another pipeline stage" in refusal("gemma-4-e2b", parallel=Parallel(pp=2))
    assert "to be greater than the model's total number of KV heads (8)" in refusal(
        "llama-3.1-8b", parallel=Parallel(tp=8, dcp=2)
    )
    assert "exceeds the maximum supported value (2)" in refusal("llama-3.1-8b", parallel=Parallel(tp=16, dcp=4))
    assert refusal("qwen3-next-80b-a3b-instruct", hybrid_kv_cache_manager=False) == (
        "Failed to promote local KV cache specs to one unified type."
    )


def test_block_sizes_that_no_kernel_takes() -> None:
    assert refusal("llama-3.1-8b", block_size=20).startswith("No valid attention backend found with block_size=20")
    assert refusal("deepseek-v3.2", block_size=32).startswith("No valid attention backend found with block_size=32")
    assert vllm("deepseek-v3.2", block_size=128).block_size == 128
    assert "No valid attention backend" in refusal("deepseek-v3", kv_cache_dtype="int8_per_token_head")


def test_deepseek_v4_fails_where_vllm_does() -> None:
    model = next(case.model for case in cases() if "V4" in case.config)
    assert refusal(model, block_size=32).startswith("ZeroDivisionError")
    assert "bounded_replay" in refusal(model, hybrid_kv_cache_manager=False)
    assert "only supports fp8" in refusal(model, kv_cache_dtype="bf16")


def test_more_sequences_than_states_is_warned_of() -> None:
    options = EngineOptions(name="vllm", max_model_len=32768, kv_cache_memory_bytes=40 << 30)
    found = plan(CATALOGUE.get("qwen3.5-27b"), options, pool_bytes=40 << 30)
    assert found.fits
    said = " ".join(assumptions(found, options))
    assert f"max_num_seqs (1024) exceeds available Mamba cache blocks ({found.num_blocks})" in said
    fewer = replace(options, max_num_seqs=found.num_blocks)
    assert "exceeds" not in " ".join(assumptions(plan(CATALOGUE.get("qwen3.5-27b"), fewer, pool_bytes=40 << 30), fewer))


def test_what_was_not_checked_is_approximate_with_its_reason() -> None:
    for flags, reason in (
        ({"gpu": find_gpu("B200-SXM-180GB")}, "Blackwell"),
        ({"gpu": find_gpu("MI300X-192GB")}, "not modelled"),
        ({"gpu": find_gpu("A100-SXM-80GB"), "kv_cache_dtype": "fp8"}, "fp8"),
        ({"kv_cache_dtype": "nvfp4"}, "nvfp4"),
    ):
        found = vllm("llama-3.1-8b", **flags)  # type: ignore[arg-type]
        assert reason in " ".join(inexact(found))
        assert size_engine(found).exact_given_pool is False
    assert size_engine(vllm("llama-3.1-8b")).exact_given_pool is True


def test_another_release_is_warned_of() -> None:
    options = EngineOptions(name="vllm", version="0.34", max_model_len=4096)
    found = plan(CATALOGUE.get("llama-3.1-8b"), options, pool_bytes=40 << 30)
    assert "vLLM 0.34: extrapolated: the newest rules known are those of 0.33.0" in " ".join(
        assumptions(found, options)
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"block_size": 0}, "--block-size 0"),
        ({"max_num_seqs": -1}, "--max-num-seqs -1"),
        ({"num_gpu_blocks_override": 0}, "--num-gpu-blocks-override 0"),
        ({"mamba_cache_mode": "some"}, "--mamba-cache-mode 'some'"),
        ({"kv_cache_dtype": "q4_0"}, "vLLM has none such"),
        ({"kv_cache_dtype": "fp7"}, "fp7"),
        ({"parallel": Parallel(tp=2, dp=2, dp_attention=True)}, "SGLang's"),
        ({"mamba_ssm_cache_dtype": "int3"}, "int3"),
    ],
)
def test_wrong_values_are_one_line(flags: dict[str, object], message: str) -> None:
    with pytest.raises(KvtoolError, match=message) as raised:
        vllm("llama-3.1-8b", **flags)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def layers(*caches: CacheKind) -> tuple[Layer, ...]:
    return tuple(Layer(cache=cache) for cache in caches)


def test_windows_beside_mla_are_kept_whole_where_no_page_size_suits_both() -> None:
    """MLA pages of 18,432 B and windows of 65,536 B: neither divides the other, and MLA pages cannot be padded."""
    latent = LatentAttention(kv_lora_rank=512, qk_rope_head_dim=64)
    window = SlidingAttention(kv_heads=8, k_head_dim=128, v_head_dim=128, window=512)
    found = vllm(replace(CATALOGUE.get("llama-3.1-8b"), layers=layers(latent, window, latent)))
    (group,) = found.groups
    assert (group.kind, group.page_bytes) == ("UniformTypeKVCacheSpecs", 2 * 18_432 + 65_536)
    assert found.blocks_per_request == 2048


def test_pages_that_no_multiple_makes_equal_are_padded() -> None:
    """K of 96: pages of 49,152 B beside 65,536 B keep 16 tokens and are padded."""
    full = FullAttention(kv_heads=8, k_head_dim=128, v_head_dim=128)
    window = SlidingAttention(kv_heads=8, k_head_dim=96, v_head_dim=96, window=512)
    found = vllm(replace(CATALOGUE.get("llama-3.1-8b"), layers=layers(full, window)))
    assert [(group.block_size, group.page_bytes) for group in found.groups] == [(16, 65_536), (16, 65_536)]


def test_windows_of_two_lengths_cannot_be_one_full_group() -> None:
    full = FullAttention(kv_heads=8, k_head_dim=128, v_head_dim=128)
    windows = [SlidingAttention(kv_heads=8, k_head_dim=128, v_head_dim=128, window=size) for size in (512, 1024)]
    model = replace(CATALOGUE.get("llama-3.1-8b"), layers=layers(full, *windows))
    assert "must have the same window size" in refusal(model, hybrid_kv_cache_manager=False)
    chunk = ChunkedAttention(kv_heads=8, k_head_dim=128, v_head_dim=128, window=8192)
    mixed = vllm(replace(model, layers=layers(full, windows[0], chunk)), hybrid_kv_cache_manager=False)
    assert [group.kind for group in mixed.groups] == ["UniformTypeKVCacheSpecs"]


def test_a_model_of_states_alone_keeps_one_a_request() -> None:
    state = Mamba2(heads=80, head_dim=64, state_dim=128, groups=1, conv_kernel=4)
    found = vllm(replace(CATALOGUE.get("llama-3.1-8b"), layers=layers(state, state)))
    assert found.blocks_per_request == 1
    assert found.inputs.aligned_state is False
