"""The document of `kvtool size`: catalogued models to the byte, vectors worked out by hand, what holds of any row."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtool.catalog.model import Model
from kvtool.catalog.models_yaml import load_catalogue
from kvtool.results import SizeRow, encode
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.size import curve, size
from kvtool.system.errors import KvtoolError
from tests.sizing.example import (
    ALL_KINDS,
    CARD,
    DEEPSEEK_V3,
    DEEPSEEK_V32,
    LLAMA_8B,
    NEMOTRON_H,
    QWEN3_NEXT,
    SHARING,
    SLIDING,
)

DATA = Path(__file__).parents[1] / "data"
CATALOGUE = load_catalogue()


def golden(name: str) -> list[dict[str, str]]:
    with (DATA / name).open() as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def row(model: Model, context: int = 8192, **options: object) -> SizeRow:
    return size(model, options=SizeOptions(contexts=(context,), **options)).rows[0]  # type: ignore[arg-type]


def test_every_catalogued_model_has_its_golden_bytes() -> None:
    known = {line["id"] for line in golden("kv_bytes.csv")}
    assert known == {model.id for model in CATALOGUE}


@pytest.mark.parametrize("line", golden("kv_bytes.csv"), ids=lambda line: line["id"])
def test_catalogued_models_to_the_byte(line: dict[str, str]) -> None:
    kv = row(CATALOGUE.get(line["id"]), 1 << 20, kv_cache_dtypes=("bf16",)).kv
    assert kv.bytes_per_token == int(line["bytes_per_token"])
    assert kv.indexer_bytes_per_token == int(line["indexer_bytes_per_token"])
    assert kv.window_bytes_per_token == int(line["window_bytes_per_token"])
    assert kv.window_cap_bytes_per_sequence == int(line["window_cap_bytes"])
    for dtype, column in (("bf16", "state_bytes_16bit"), ("fp32", "state_bytes_fp32")):
        model = replace(CATALOGUE.get(line["id"]), dtype="bfloat16")
        state = row(model, kv_cache_dtypes=("bf16",), state_dtype=dtype).kv.state_bytes_per_sequence
        assert state == int(line[column])


@pytest.mark.parametrize(
    ("model", "dtype", "bytes_per_token", "indexer"),
    [
        (LLAMA_8B, "bf16", 131_072, 0),
        (DEEPSEEK_V3, "bf16", 70_272, 0),
        (DEEPSEEK_V3, "fp8", 35_136, 0),
        (DEEPSEEK_V32, "fp8", 40_016, 8_052),
        (DEEPSEEK_V32, "nvfp4_ds_mla", 21_472, 8_052),
        (QWEN3_NEXT, "bf16", 24_576, 0),
        (CATALOGUE.get("llama-3-70b"), "bf16", 327_680, 0),
        (CATALOGUE.get("gpt-oss-120b"), "bf16", 36_864, 0),
    ],
)
def test_vectors_worked_out_by_hand(model: Model, dtype: str, bytes_per_token: int, indexer: int) -> None:
    """2 x 32 x 8 x 128 x 2; 61 x 576 x 2 and x 1; 61 x 656 (vLLM's fp8_ds_mla), 352 (nvfp4_ds_mla), 61 x 132 of its
    DeepseekV32IndexerCache; 2 x 12 x 2 x 256 x 2; 2 x 80 x 8 x 128 x 2; 2 x 18 x 8 x 64 x 2 of the full layers.
    """
    kv = row(model, kv_cache_dtypes=(dtype,)).kv
    assert (kv.bytes_per_token, kv.indexer_bytes_per_token) == (bytes_per_token, indexer)
    assert kv.slope_bytes_per_token == bytes_per_token + indexer


def test_gpt_oss_between_its_windows_and_full_context() -> None:
    """18 full and 18 sliding layers of 8 x (64 + 64) x 2 B, the sliding ones for 128 tokens (reference: hf-mem#60)."""
    kv = row(CATALOGUE.get("gpt-oss-120b"), 73_728).kv
    assert (kv.bytes_per_token, kv.window_bytes_per_token) == (36_864, 36_864)
    assert kv.window_cap_bytes_per_sequence == 128 * 36_864


def test_hybrid_state_is_the_fixed_part() -> None:
    kv = row(QWEN3_NEXT, 1000).kv
    assert kv.state_bytes_per_sequence == kv.fixed_bytes_per_sequence == 36 * 1_097_728
    assert kv.bytes_per_sequence == 36 * 1_097_728 + 1000 * 24_576
    assert kv.allocated_bytes_per_sequence == 36 * 1_097_728 + 1008 * 24_576


def test_windows_are_capped() -> None:
    kv = row(SLIDING, 100_000).kv
    assert (kv.bytes_per_token, kv.window_bytes_per_token) == (4 * 4096, 4 * 4096)
    assert kv.window_cap_bytes_per_sequence == kv.fixed_bytes_per_sequence == 1024 * 4 * 4096
    assert kv.bytes_per_sequence == (1024 + 100_000) * 4 * 4096


def test_layers_add_up_to_the_sequence() -> None:
    for model in ALL_KINDS:
        sized = row(model, 5000)
        assert sum(group.bytes_per_sequence for group in sized.layers) == sized.kv.bytes_per_sequence
        growing = [g for g in sized.layers if g.kind in ("full", "mla", "compressed")]
        assert sum(g.bytes_per_token for g in growing) == sized.kv.bytes_per_token


def test_layers_of_one_kind_and_shape_are_one_group() -> None:
    assert [(g.kind, g.count) for g in row(SHARING).layers] == [("sliding", 4), ("full", 4), ("shared", 2)]


def test_a_row_for_every_combination() -> None:
    options = SizeOptions(contexts=(1024, 2048), batch_sizes=(1, 8), kv_cache_dtypes=("bf16", "fp8"))
    rows = size(LLAMA_8B, SLIDING, options=options).rows
    seen = [(r.model.id, r.inputs.kv_cache_dtype, r.inputs.context, r.inputs.batch_size) for r in rows]
    assert len(set(seen)) == len(seen) == 16
    assert seen[:3] == [("llama-8b", "bf16", 1024, 1), ("llama-8b", "bf16", 1024, 8), ("llama-8b", "bf16", 2048, 1)]


def test_default_contexts_end_with_the_models_own() -> None:
    assert [r.inputs.context for r in size(LLAMA_8B).rows] == [4096, 32768, 131072]
    short = replace(LLAMA_8B, max_position_embeddings=2048)
    assert [r.inputs.context for r in size(short).rows] == [2048]
    prefixed = size(LLAMA_8B, options=SizeOptions(shared_prefix=5000)).rows
    assert [r.inputs.context for r in prefixed] == [32768, 131072]


def test_a_curve_runs_from_1k_to_the_longest() -> None:
    contexts = curve(LLAMA_8B, SizeOptions(contexts=(4096,))).contexts
    assert (contexts[0], contexts[-1]) == (1024, 131072)
    assert len(contexts) > 20
    assert curve(LLAMA_8B, SizeOptions(contexts=(100,), max_model_len=512)).contexts == (512,)


def test_parallel_rows() -> None:
    sized = row(LLAMA_8B, parallel=Parallel(tp=16, pp=2))
    assert sized.inputs.num_gpus == 32
    assert sized.kv.bytes_total == 8192 * 131_072
    assert sized.kv.bytes_per_gpu == 8192 * 131_072 // 8 // 2


def test_what_was_assumed_is_said() -> None:
    def said(model: Model, **options: object) -> str:
        return "\n".join(size(model, options=SizeOptions(contexts=(8192,), **options)).assumptions)  # type: ignore[arg-type]

    assert "tp 16 is more than the 8 KV heads: each head is on 2 ranks" in said(LLAMA_8B, parallel=Parallel(tp=16))
    attention = said(DEEPSEEK_V3, parallel=Parallel(tp=8, dp=4, dp_attention=True))
    assert "dp attention: 4 replicas of attention weights and cache on 8 ranks, 2 each" in attention
    assert "2 whole copies on 2 ranks" in attention
    copied = said(DEEPSEEK_V3, parallel=Parallel(tp=8, dp=4, ep=32))
    assert "each of the 4 replicas has its own copy of the dense weights, experts are split 32 ways" in copied
    assert "8 whole copies on 8 ranks" in said(DEEPSEEK_V32, parallel=Parallel(tp=8))
    assert "recurrent state in fp32" in said(NEMOTRON_H)
    assert "with --mamba-ssm-cache-dtype fp32 it is 77,266,944 B" in said(QWEN3_NEXT)
    assert "fp8_ds_mla layout, 656 B" in said(DEEPSEEK_V32, kv_cache_dtypes=("fp8",))
    assert "no dtype is known" in said(replace(LLAMA_8B, dtype=None))
    assert "--kv-cache-dtype bf16" in said(replace(LLAMA_8B, dtype="float32"))
    assert "made for 1,000 positions" in said(replace(LLAMA_8B, max_position_embeddings=1000))
    assert "512 whole pages are stored once" in said(LLAMA_8B, shared_prefix=8192)
    assert "0.25 GiB outside of torch, fitted to 36 starts on one H100, not on this card" in said(LLAMA_8B, gpu=CARD)
    assert "0.54 GiB for 51 + 51 CUDA graphs, fitted to the estimates that vLLM 0.19 made" in said(LLAMA_8B, gpu=CARD)
    assert said(LLAMA_8B) == "llama-8b: the bf16 cache passes the weights at one sequence of 122,529 tokens"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contexts": (0,)}, "context 0 must be from 1"),
        ({"batch_sizes": (-1,)}, "batch size -1 must be from 1"),
        ({"block_size": 0}, "block size 0 must be from 1"),
        ({"gpu_memory_utilization": 0.0}, "gpu memory utilization 0.0 must be above 0"),
        ({"contexts": (100,), "shared_prefix": 101}, "shared prefix 101 is longer than the context 100"),
        ({"shared_prefix": -1}, "shared prefix -1 must not be negative"),
        ({"contexts": (100,), "max_model_len": 99}, "--max-model-len 99 is shorter than 100"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        SizeOptions(**options)  # type: ignore[arg-type]


@given(
    model=st.sampled_from(ALL_KINDS),
    context=st.integers(1, 1 << 21),
    batch_size=st.integers(1, 300),
    dtype=st.sampled_from(["auto", "fp32", "fp8", "int8_per_token_head"]),
    parallel=st.sampled_from([Parallel(), Parallel(tp=8), Parallel(tp=2, pp=3, dp=2)]),
    gpu=st.sampled_from([None, CARD]),
)
def test_rows_of_any_size_hold_together(
    model: Model, context: int, batch_size: int, dtype: str, parallel: Parallel, gpu: object
) -> None:
    sized = row(model, context, batch_sizes=(batch_size,), kv_cache_dtypes=(dtype,), parallel=parallel, gpu=gpu)
    kv = sized.kv
    assert kv.bytes_per_sequence <= kv.allocated_bytes_per_sequence
    assert kv.bytes_total == batch_size * kv.allocated_bytes_per_sequence
    assert kv.bytes_per_gpu * sized.inputs.num_gpus >= kv.bytes_total
    assert kv.allocated_bytes_per_sequence <= kv.fixed_bytes_per_sequence + kv.slope_bytes_per_token * (context + 127)
    unknown = gpu is None or sized.weights.bytes is None
    assert sized.fit.fits is (None if unknown else kv.bytes_per_gpu <= (sized.fit.kv_pool_bytes or 0))
    encode(size(model, options=SizeOptions(contexts=(context,), parallel=parallel)))
