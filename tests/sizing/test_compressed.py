"""DeepSeek-V4 and encoder-decoders: what vLLM 0.33.0's own code made of their configs (its specs, layer by layer)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from kvtool.catalog.hf_config import read_config
from kvtool.catalog.models_yaml import load_catalogue
from kvtool.sizing.formats import parse_cache_format
from kvtool.sizing.layers import layer_specs
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.size import size
from kvtool.sizing.specs import CompressedSpec, CompressorSpec, CrossSpec, FullSpec, IndexerSpec, SlidingRowSpec

CONFIGS = Path(__file__).parents[1] / "data" / "vllm_configs"
V4 = read_config(CONFIGS / "deepseek-ai--DeepSeek-V4-Flash.json")
WHISPER = read_config(CONFIGS / "openai--whisper-large-v3.json")


def test_the_catalogue_says_what_the_config_says() -> None:
    assert load_catalogue().get("deepseek-v4-flash").layers == V4.layers


def test_v4_keeps_what_vllm_stores() -> None:
    """vLLM's specs: state_content_bytes 584 with tokens_per_state 1, 4 and 128; index keys of 132 B; fp32 states
    of 2048 and 512 for 8 tokens and of 1024 for 128.
    """
    kept = Counter(layer_specs(V4, parse_cache_format("fp8")))
    rows = {
        (s.kind, s.row_bytes, s.ratio, n) for s, n in kept.items() if isinstance(s, SlidingRowSpec | CompressedSpec)
    }
    assert rows == {("sliding", 584, 1, 43), ("compressed", 584, 4, 21), ("compressed", 584, 128, 20)}
    assert {(s.window, n) for s, n in kept.items() if isinstance(s, SlidingRowSpec)} == {(128, 43)}
    assert {(s.row_bytes, s.ratio, n) for s, n in kept.items() if isinstance(s, IndexerSpec)} == {(132, 4, 21)}
    states = {(s.vector_dim, s.window, n) for s, n in kept.items() if isinstance(s, CompressorSpec)}
    assert states == {(2048, 8, 21), (512, 8, 21), (1024, 128, 20)}


def test_v4_growth_is_rounded_up_once() -> None:
    """21 x 584 / 4 + 20 x 584 / 128 = 3066 + 91.25 B a token, and 21 x 132 / 4 of index keys."""
    kv = size(V4, options=SizeOptions(contexts=(4096,), kv_cache_dtypes=("fp8",))).rows[0].kv
    assert (kv.bytes_per_token, kv.indexer_bytes_per_token) == (3158, 693)
    assert kv.window_cap_bytes_per_sequence == 43 * 128 * 584
    compressors = 21 * 8 * (2048 + 512) * 4 + 20 * 128 * 1024 * 4
    rows = 21 * (1024 * (584 + 132)) + 20 * (32 * 584)
    assert kv.bytes_per_sequence == kv.window_cap_bytes_per_sequence + compressors + rows
    assert kv.state_bytes_per_sequence == 0
    assert kv.fixed_bytes_per_sequence == kv.window_cap_bytes_per_sequence + compressors


@pytest.mark.parametrize(("tokens", "rows_of_4", "rows_of_128"), [(3, 0, 0), (4, 1, 0), (127, 31, 0), (257, 64, 2)])
def test_a_group_that_is_not_full_has_no_row(tokens: int, rows_of_4: int, rows_of_128: int) -> None:
    specs = {s.ratio: s for s in layer_specs(V4, parse_cache_format("bf16")) if isinstance(s, CompressedSpec)}
    assert specs[4].stored_bytes(tokens) == rows_of_4 * 1024
    assert specs[128].stored_bytes(tokens) == rows_of_128 * 1024
    assert specs[128].pages(tokens, 16) == rows_of_128  # a page of fewer tokens than a group holds one row
    assert specs[4].pages(tokens, 16) == -(-rows_of_4 // 4)


def test_a_step_reads_the_rows_its_indexer_chooses() -> None:
    specs = {s.ratio: s for s in layer_specs(V4, parse_cache_format("bf16")) if isinstance(s, CompressedSpec)}
    assert specs[4].read_bytes(1 << 20) == 512 * 1024
    assert specs[128].read_bytes(1 << 20) == (1 << 13) * 1024


def test_v4_is_whole_on_every_rank_but_dcp_splits_its_rows() -> None:
    def bytes_per_gpu(parallel: Parallel) -> int:
        options = SizeOptions(contexts=(1 << 20,), kv_cache_dtypes=("fp8",), parallel=parallel)
        return size(V4, options=options).rows[0].kv.bytes_per_gpu

    one = bytes_per_gpu(Parallel())
    assert bytes_per_gpu(Parallel(tp=8)) == one
    rows = 21 * (1 << 18) * 584 + 20 * (1 << 13) * 584
    assert one - bytes_per_gpu(Parallel(tp=8, dcp=8)) == rows - rows // 8


def test_whisper_keeps_both_attentions_of_each_layer() -> None:
    """vLLM: 32 FullAttentionSpec and 32 CrossAttentionSpec, pages of 81,920 B for 16 tokens; 1,500 frames."""
    kept = Counter(layer_specs(WHISPER, parse_cache_format("bf16")))
    assert {(type(s), s.page_bytes(16), n) for s, n in kept.items()} == {(FullSpec, 81920, 32), (CrossSpec, 81920, 32)}
    kv = size(WHISPER, options=SizeOptions(contexts=(448,))).rows[0].kv
    assert kv.bytes_per_token == 32 * 20 * 128 * 2
    assert kv.bytes_per_sequence == (448 + 1500) * 32 * 20 * 128 * 2
    assert kv.fixed_bytes_per_sequence == 1504 * 32 * 20 * 128 * 2  # 94 pages of 16
    four = layer_specs(WHISPER, parse_cache_format("bf16"), tp=4)
    assert {spec.page_bytes(16) for spec in four} == {20480}
