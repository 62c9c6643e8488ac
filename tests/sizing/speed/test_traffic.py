from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtool.catalog.model import Model, Moe
from kvtool.catalog.models_yaml import load_catalogue
from kvtool.sizing.formats import CACHE_FORMATS
from kvtool.sizing.layers import layer_specs
from kvtool.sizing.speed.traffic import (
    attention_flops,
    decode_flops,
    decode_kv_read_bytes,
    experts_touched,
    kv_written_bytes,
    prefill_flops,
)
from tests.sizing.example import ALL_KINDS, DEEPSEEK_V3, DEEPSEEK_V32, LLAMA_8B, QWEN3_NEXT, SLIDING

BF16 = CACHE_FORMATS["bf16"]


def test_decode_reads_each_sequence() -> None:
    specs = layer_specs(LLAMA_8B, BF16)
    assert decode_kv_read_bytes(specs, [1, 100, 100]) == 201 * 131_072
    assert kv_written_bytes(specs, 3) == 3 * 131_072


def test_windows_write_every_token_and_states_none() -> None:
    assert kv_written_bytes(layer_specs(SLIDING, BF16), 5000) == 5000 * 8 * 4096
    assert kv_written_bytes(layer_specs(QWEN3_NEXT, BF16), 1) == 24_576


def test_attention_of_llama_by_hand() -> None:
    """QK^T and PV: 2 x 32 heads x (128 + 128) FLOPs for each query-key pair and layer."""
    pair = 2 * 32 * 256 * 32
    assert attention_flops(LLAMA_8B, new_tokens=1, cached_tokens=99) == 100 * pair
    assert attention_flops(LLAMA_8B, new_tokens=4, cached_tokens=0) == (1 + 2 + 3 + 4) * pair
    assert attention_flops(LLAMA_8B, new_tokens=2, cached_tokens=10) == (11 + 12) * pair


def test_a_window_bounds_the_pairs() -> None:
    full, sliding = 2 * 32 * 256 * 4, 2 * 32 * 256 * 4
    pairs = 1020 * 4 + (1 + 2 + 3 + 4) + 6 * 1024  # 4 queries until the window is full, 6 after
    flops = attention_flops(SLIDING, new_tokens=10, cached_tokens=1020)
    assert flops == full * sum(1020 + i for i in range(1, 11)) + sliding * pairs


def test_mla_decodes_on_the_latent_and_prefills_on_heads() -> None:
    assert attention_flops(DEEPSEEK_V3, new_tokens=1, cached_tokens=0) == 61 * 2 * 128 * (576 + 512)
    assert attention_flops(DEEPSEEK_V3, new_tokens=2, cached_tokens=0) == 61 * 2 * 128 * (192 + 128) * 3


def test_an_indexer_scores_all_so_that_attention_sees_few() -> None:
    sparse = attention_flops(DEEPSEEK_V32, new_tokens=1, cached_tokens=99_999)
    assert sparse == 61 * (2 * 64 * 128 * 100_000 + 2 * 128 * (576 + 512) * 2048)


def test_prefill_runs_the_head_once_and_decode_every_time() -> None:
    body, head = 8_030_261_248 - 2 * 128256 * 4096, 128256 * 4096
    pair = 2 * 32 * 256 * 32
    assert prefill_flops(LLAMA_8B, 100) == 2 * (body * 100 + head) + pair * 5050
    assert decode_flops(LLAMA_8B, [10, 20]) == 2 * 2 * (body + head) + pair * 30


def test_flops_are_unknown_where_parameters_are() -> None:
    unknown = replace(LLAMA_8B, architecture=None)
    assert decode_flops(unknown, [10]) is None
    assert prefill_flops(unknown, 10) is None


@pytest.mark.parametrize(("tokens", "touched"), [(1, 8.0), (2, 15.75), (100_000, 256.0)])
def test_experts_touched(tokens: int, touched: float) -> None:
    """256 experts, 8 a token: the second token's 8 meet the first's with probability 8/256 each."""
    moe = Moe(num_experts=256, experts_per_token=8, intermediate_size=1)
    assert experts_touched(moe, tokens) == pytest.approx(touched)


@given(
    model=st.sampled_from(ALL_KINDS),
    cached=st.integers(0, 50_000),
    first=st.integers(2, 500),
    second=st.integers(2, 500),
)
def test_prefill_in_two_chunks_does_the_attention_of_one(model: Model, cached: int, first: int, second: int) -> None:
    whole = attention_flops(model, new_tokens=first + second, cached_tokens=cached)
    chunks = attention_flops(model, new_tokens=first, cached_tokens=cached)
    chunks += attention_flops(model, new_tokens=second, cached_tokens=cached + first)
    assert whole == chunks


@pytest.mark.parametrize(
    ("name", "dtype", "published"), [("qwen2.5-32b", "fp16", (117, 267)), ("qwen3-235b-a22b", "fp8", (39, 60))]
)
def test_cache_bytes_a_flop_as_published(name: str, dtype: str, published: tuple[float, float]) -> None:
    """DualPath (arXiv 2602.21548), table 1: GB of cached KV a PFLOP of appending 429 tokens to 16k and 64k."""
    qwen_32b = replace(
        LLAMA_8B,
        architecture="qwen2",
        layers=(LLAMA_8B.layers[0],) * 64,
        hidden_size=5120,
        num_heads=40,
        intermediate_size=27648,
        vocab_size=152064,
    )
    model = qwen_32b if name == "qwen2.5-32b" else load_catalogue().get(name)
    specs = layer_specs(model, CACHE_FORMATS[dtype])
    for context, expected in zip((16384, 65536), published, strict=True):
        flops = prefill_flops(model, 429, context)
        assert flops is not None
        loaded_gb = sum(spec.stored_bytes(context) for spec in specs) / 1e9
        assert loaded_gb / (flops / 1e15) == pytest.approx(expected, rel=0.02)
