from __future__ import annotations

from dataclasses import replace

import pytest

from kvtool.catalog.model import FullAttention, Layer, Model
from kvtool.sizing.formats import CACHE_FORMATS
from kvtool.sizing.layers import StateFormat, layer_specs, state_format
from kvtool.sizing.specs import FullSpec, IndexerSpec, LatentSpec, SharedSpec, StateSpec
from kvtool.system.errors import KvtoolError
from tests.sizing.example import DEEPSEEK_V3, DEEPSEEK_V32, LLAMA_8B, NEMOTRON_H, QWEN3_NEXT, SHARING

BF16, FP8 = CACHE_FORMATS["bf16"], CACHE_FORMATS["fp8"]


def test_one_spec_a_layer_then_its_indexer() -> None:
    assert len(layer_specs(LLAMA_8B, BF16)) == 32
    assert [type(spec) for spec in layer_specs(DEEPSEEK_V32, BF16)][:4] == [LatentSpec, IndexerSpec] * 2
    assert [spec.kind for spec in layer_specs(NEMOTRON_H, BF16)] == [
        "state",
        "full",
    ]  # the MLP-only layer keeps nothing


@pytest.mark.parametrize(("tp", "kv_heads"), [(1, 8), (2, 4), (8, 1), (16, 1), (32, 1)])
def test_kv_heads_are_split_then_replicated(tp: int, kv_heads: int) -> None:
    spec = layer_specs(LLAMA_8B, BF16, tp=tp)[0]
    assert isinstance(spec, FullSpec)
    assert spec.kv_heads == kv_heads


def test_a_latent_is_whole_on_every_rank() -> None:
    assert layer_specs(DEEPSEEK_V3, BF16, tp=8) == layer_specs(DEEPSEEK_V3, BF16, tp=1)


def test_heads_that_cannot_be_dealt_out_are_refused() -> None:
    with pytest.raises(KvtoolError, match="tp 3 does not divide the 32 query heads of llama-8b"):
        layer_specs(LLAMA_8B, BF16, tp=3)
    ten = replace(
        LLAMA_8B, num_heads=40, layers=(Layer(cache=FullAttention(kv_heads=10, k_head_dim=128, v_head_dim=128)),)
    )
    with pytest.raises(KvtoolError, match="tp 4 neither divides the 10 KV heads nor is a multiple"):
        layer_specs(ten, BF16, tp=4)


def test_fp8_packs_only_sparse_mla() -> None:
    packed, plain = layer_specs(DEEPSEEK_V32, FP8)[0], layer_specs(DEEPSEEK_V3, FP8)[0]
    assert (packed.bytes_per_token, plain.bytes_per_token) == (656, 576)


def test_mla_layers_without_an_indexer_take_the_choice_of_the_one_before() -> None:
    shared = replace(DEEPSEEK_V32, layers=(DEEPSEEK_V32.layers[0], *DEEPSEEK_V3.layers[1:3]))
    assert [spec.read_tokens(10_000) for spec in layer_specs(shared, BF16) if spec.kind == "mla"] == [2048] * 3


def test_shared_layers_read_their_source() -> None:
    *_, sliding, full = layer_specs(SHARING, BF16)
    assert isinstance(sliding, SharedSpec)
    assert (sliding.read_bytes(5000), full.read_bytes(5000)) == (1024 * 4096, 5000 * 4096)


@pytest.mark.parametrize(
    ("model", "asked", "recurrent"),
    [
        (QWEN3_NEXT, "auto", "bf16"),
        (QWEN3_NEXT, "fp32", "fp32"),
        (replace(QWEN3_NEXT, architecture="qwen3_5_text"), "auto", "fp32"),
        (NEMOTRON_H, "auto", "fp32"),
        (NEMOTRON_H, "bf16", "bf16"),
        (replace(NEMOTRON_H, recurrent_state_dtype="float16"), "auto", "fp16"),
    ],
)
def test_state_dtype_follows_vllm(model: Model, asked: str, recurrent: str) -> None:
    assert state_format(model, asked) == StateFormat(conv="bf16", recurrent=recurrent)


def test_the_cache_dtype_does_not_touch_the_state() -> None:
    states = [[s for s in layer_specs(QWEN3_NEXT, f) if isinstance(s, StateSpec)] for f in (BF16, FP8)]
    assert states[0] == states[1]
