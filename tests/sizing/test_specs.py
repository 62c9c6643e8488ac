from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtool.sizing.formats import CACHE_FORMATS, CacheFormat
from kvtool.sizing.layers import layer_specs
from kvtool.sizing.specs import (
    CacheSpec,
    CrossSpec,
    FullSpec,
    IndexerSpec,
    LatentSpec,
    SharedSpec,
    SlidingSpec,
    StateSpec,
)
from tests.sizing.example import ALL_KINDS

BF16, FP8 = CACHE_FORMATS["bf16"], CACHE_FORMATS["fp8"]
FULL = FullSpec(kv_heads=8, k_head_dim=128, v_head_dim=128, cache_format=BF16)
WINDOW = SlidingSpec(kv_heads=8, k_head_dim=128, v_head_dim=128, window=1000, cache_format=BF16)

specs = st.sampled_from([spec for model in ALL_KINDS for spec in layer_specs(model, BF16)])
tokens = st.integers(1, 1 << 20)
block_sizes = st.sampled_from([1, 16, 24, 64, 256])


def test_full_attention_keeps_k_and_v_of_every_head() -> None:
    assert FULL.bytes_per_token == 2 * 8 * 128 * 2
    assert FULL.page_bytes(16) == 65536  # vLLM 0.33's page_size_bytes of Llama-3.1-8B
    assert (FULL.pages(16, 16), FULL.pages(17, 16)) == (1, 2)
    assert FULL.allocated_bytes(17, 16) == 2 * 65536


def test_k_and_v_may_differ() -> None:
    spec = FullSpec(kv_heads=4, k_head_dim=192, v_head_dim=128, cache_format=BF16)
    assert spec.bytes_per_token == 4 * (192 + 128) * 2


def test_a_window_keeps_no_more_than_its_tokens() -> None:
    assert WINDOW.stored_bytes(999) == 999 * WINDOW.bytes_per_token
    assert WINDOW.stored_bytes(100_000) == 1000 * WINDOW.bytes_per_token
    assert WINDOW.allocated_bytes(100_000, 16) == 1008 * WINDOW.bytes_per_token
    assert WINDOW.read_bytes(100_000) == 1000 * WINDOW.bytes_per_token


@pytest.mark.parametrize(("cache_format", "ds_mla", "row"), [(BF16, False, 1152), (FP8, False, 576), (FP8, True, 656)])
def test_latent_rows_of_deepseek(cache_format: CacheFormat, ds_mla: bool, row: int) -> None:
    """fp8_ds_mla: 512 fp8 + 4 fp32 scales + 64 bf16 (vLLM, attention/backends/mla/flashmla_sparse.py)."""
    spec = LatentSpec(kv_lora_rank=512, qk_rope_head_dim=64, cache_format=cache_format, sparse=ds_mla)
    assert spec.bytes_per_token == row


def test_per_token_head_scales_of_a_latent() -> None:
    scaled = LatentSpec(kv_lora_rank=512, qk_rope_head_dim=64, cache_format=CACHE_FORMATS["int8_per_token_head"])
    assert scaled.bytes_per_token == 576 + 2 * 4


def test_index_keys() -> None:
    """DeepSeek-V3.2: 128 fp8 + one fp32 scale (vLLM's DeepseekV32IndexerCache); MiniMax-M3: 128 bf16."""
    assert IndexerSpec(head_dim=128, dtype="fp8").bytes_per_token == 132
    assert IndexerSpec(head_dim=128, dtype="fp4").bytes_per_token == 68
    assert IndexerSpec(head_dim=128, dtype="bf16").bytes_per_token == 256


def test_a_sparse_layer_stores_all_and_reads_its_top_k() -> None:
    spec = LatentSpec(kv_lora_rank=512, qk_rope_head_dim=64, cache_format=BF16, top_k_tokens=2048)
    assert spec.stored_bytes(100_000) == 100_000 * 1152
    assert spec.read_bytes(100_000) == 2048 * 1152
    assert spec.read_bytes(100) == 100 * 1152


def test_state_is_constant_read_and_rewritten() -> None:
    spec = StateSpec(conv_elements=10, recurrent_elements=100, conv_element_bytes=2, recurrent_element_bytes=4)
    assert spec.stored_bytes(1) == spec.stored_bytes(1 << 20) == spec.allocated_bytes(7, 16) == 420
    assert spec.read_bytes(5) == 840
    assert spec.bytes_per_token == spec.pages(100, 16) == spec.shared_pages(64, 100, 16) == 0


def test_cross_attention_is_sized_by_the_encoder() -> None:
    spec = CrossSpec(kv_heads=8, k_head_dim=128, v_head_dim=128, encoder_tokens=1601, cache_format=BF16)
    assert spec.stored_bytes(1) == spec.stored_bytes(9999) == 1601 * 4096
    assert spec.pages(1, 16) == 101
    assert spec.shared_pages(64, 128, 16) == 0


def test_a_shared_layer_stores_nothing_and_reads_its_source() -> None:
    spec = SharedSpec(source=WINDOW)
    assert spec.stored_bytes(5000) == spec.allocated_bytes(5000, 16) == 0
    assert spec.read_bytes(5000) == WINDOW.read_bytes(5000)
    assert SharedSpec().read_bytes(5000) == 0


def test_only_whole_pages_of_a_prefix_are_shared_and_only_while_needed() -> None:
    assert FULL.shared_pages(prefix_tokens=100, tokens=200, block_size=16) == 6
    assert WINDOW.shared_pages(prefix_tokens=960, tokens=1000, block_size=16) == 60
    # At 1,500 tokens the window has left the first 500 behind: pages 0 to 31 hold none, or not only, of its tokens.
    assert WINDOW.shared_pages(prefix_tokens=960, tokens=1500, block_size=16) == 60 - 32
    assert WINDOW.shared_pages(prefix_tokens=960, tokens=5000, block_size=16) == 0


@given(spec=specs, length=tokens, block_size=block_sizes)
def test_pages_hold_what_is_stored(spec: CacheSpec, length: int, block_size: int) -> None:
    stored, allocated = spec.stored_bytes(length), spec.allocated_bytes(length, block_size)
    assert stored <= allocated < stored + max(1, spec.page_bytes(block_size))
    if spec.per_token:
        assert allocated == spec.pages(length, block_size) * spec.page_bytes(block_size)


@given(spec=specs, length=tokens, more=tokens, block_size=block_sizes)
def test_a_longer_sequence_never_takes_less(spec: CacheSpec, length: int, more: int, block_size: int) -> None:
    assert spec.stored_bytes(length) <= spec.stored_bytes(length + more)
    assert spec.allocated_bytes(length, block_size) <= spec.allocated_bytes(length + more, block_size)
    assert spec.read_bytes(length) <= spec.read_bytes(length + more)


@given(spec=specs, length=tokens, block_size=block_sizes, data=st.data())
def test_shared_pages_are_among_those_held(spec: CacheSpec, length: int, block_size: int, data: st.DataObject) -> None:
    prefix = data.draw(st.integers(0, length))
    assert 0 <= spec.shared_pages(prefix, length, block_size) <= spec.pages(length, block_size)
