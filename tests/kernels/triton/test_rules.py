"""Tiles and splits as shapes grow."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtool.kernels.triton.tiles.rules import (
    MAX_SPLITS,
    MIN_SPLIT_TOKENS,
    Target,
    attention_tile,
    decode_tile,
    merges_alone,
    num_items,
    num_splits,
    padded,
)

H100 = Target(capability=90, multiprocessors=132, shared_bytes=227 * 1024)
L40S = Target(capability=89, multiprocessors=142, shared_bytes=99 * 1024)


@pytest.mark.parametrize(
    ("head_dim", "rows", "block_m"),
    [(128, 1, 16), (128, 17, 64), (128, 65, 128), (128, 8192, 128), (256, 8192, 64), (512, 128, 32)],
)
def test_more_rows_take_a_taller_tile(head_dim: int, rows: int, block_m: int) -> None:
    assert attention_tile(head_dim, rows, 2, 2, H100).block_m == block_m


def test_without_wgmma_a_head_of_128_keeps_to_64_rows() -> None:
    assert attention_tile(128, 8192, 2, 2, L40S).block_m == 64


def test_a_small_card_keeps_fewer_wide_tiles_in_flight() -> None:
    assert attention_tile(512, 16, 2, 2, L40S).num_stages < attention_tile(512, 16, 2, 2, H100).num_stages


def test_one_long_sequence_fills_the_device() -> None:
    """Llama-8B at batch 1: 8 KV heads x 49 splits = 392 programs on 132 x 3 places."""
    tile = attention_tile(128, 4, 2, 2, H100)
    assert num_splits(8, 32768, tile.resident_programs(512, H100)) == 49


@pytest.mark.parametrize(("heads", "block_m"), [(16, 16), (32, 32), (64, 64), (128, 64)])
def test_many_heads_share_a_tile_of_latents_on_hopper(heads: int, block_m: int) -> None:
    assert decode_tile(512, heads, 2, 2, H100).block_m == block_m


def test_without_wgmma_or_with_bytes_to_convert_latents_have_few_rows() -> None:
    assert decode_tile(512, 128, 2, 2, L40S).block_m == 32
    assert decode_tile(512, 128, 2, 1, H100).block_m == 16


@pytest.mark.parametrize(("heads", "resident"), [(16, 264), (128, 132)])
def test_programs_of_latents_fill_the_device(heads: int, resident: int) -> None:
    assert decode_tile(512, heads, 2, 2, H100).resident_programs(1152, H100) == resident


def test_a_tile_that_was_timed_says_how_it_loads_and_how_many_run_at_once() -> None:
    tile = attention_tile(128, 4, 2, 2, H100)
    assert tile.uses_tma(128, 64, 2, H100)
    assert not replace(tile, by_descriptor=False).uses_tma(128, 64, 2, H100)
    tall = replace(tile, block_m=128, max_registers=168, by_descriptor=True)
    assert tall.uses_tma(256, 64, 2, H100)
    assert not tall.uses_tma(256, 16, 2, H100)  # a box is within a page, whatever a tile says
    assert not tall.uses_tma(256, 64, 2, L40S)
    assert replace(tile, programs=2).resident_programs(512, H100) == 264
    assert replace(tile, programs=17).fault == "has programs 17, which is not within 0 and 16"


def test_items_of_a_list_are_for_sequences_and_for_their_tokens() -> None:
    """Of 8 KV heads on 132 x 3 places: 49 for the tokens of one sequence, and as many as there are of 64."""
    assert num_items(1, 8, 396) == 1 + 49
    assert num_items(64, 8, 396) == 64 + 64


def test_rows_of_mla_are_too_many_for_one_program_to_merge() -> None:
    """Llama-8B at batch 1: 4 heads x 49 splits x 128 values; DeepSeek-V2-Lite: 16 heads x 64 splits x 512."""
    assert merges_alone(4, 49, 128)
    assert not merges_alone(16, 64, 512)


@given(st.integers(1, 10_000), st.integers(1, 2**20), st.integers(1, 1000))
def test_splits_are_useful_and_resident(programs: int, context: int, resident: int) -> None:
    splits = num_splits(programs, context, resident)
    assert 1 <= splits <= MAX_SPLITS
    assert splits == 1 or (programs * splits <= resident and (splits - 1) * MIN_SPLIT_TOKENS < context)


@given(st.integers(1, 4096))
def test_padded_is_the_next_power_of_two(dim: int) -> None:
    assert padded(dim) & (padded(dim) - 1) == 0
    assert dim <= padded(dim) < 2 * dim
