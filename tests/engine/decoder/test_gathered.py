"""Pages side by side: every token at its place in the copy, and decompression in as many parts as memory allows."""

from __future__ import annotations

import pytest
import torch

from kvtool.engine.decoder import latent_attention
from kvtool.engine.decoder.gathered import gathered
from tests.engine.conftest import SaveTiny
from tests.engine.running import engine_of, generate, largest_difference, load, prompt

CPU = torch.device("cpu")


@pytest.mark.parametrize(("page_size", "block_size"), [(16, 64), (64, 64), (48, 96), (1, 64), (100, 100)])
def test_each_token_is_where_its_block_table_says(page_size: int, block_size: int) -> None:
    sequences = ([7, 3, 5], [2], [4, 0, 6, 1, 9])
    found = gathered(sequences, page_size, 64, CPU)
    assert found.block_size == block_size
    slots = torch.arange(10 * page_size).view(10, page_size)  # each holds its own number
    copy = slots[found.pages].view(-1, block_size)
    for own, table in zip(sequences, found.block_tables, strict=True):
        tokens = torch.arange(len(own) * page_size)
        assert torch.equal(copy[table[tokens // block_size], tokens % block_size], slots[own].flatten())


def test_no_page_is_copied_that_is_not_needed() -> None:
    found = gathered(([3, 1], [2]), 16, 1, CPU)
    assert found.pages.tolist() == [3, 1, 2]
    assert found.block_tables.tolist() == [[0, 1], [2, 0]]


def test_heads_in_parts_say_what_all_at_once_say(tiny: SaveTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_attention, "_DECOMPRESSED_BYTES", 3 * 48 * 28 * 4)  # 3 heads of 48 tokens: 3 + 1
    reference = tiny("deepseek-v3")
    sequences = generate(engine_of(load(reference.folder)), [prompt(40), prompt(90)], max_tokens=3)
    assert max(largest_difference(reference, sequence) for sequence in sequences) < 1e-4


def test_blocks_of_heads_hold_what_they_may() -> None:
    half = latent_attention._DECOMPRESSED_BYTES // 2
    assert latent_attention._head_blocks(5, half) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert latent_attention._head_blocks(2, 5 * half) == [slice(0, 1), slice(1, 2)]  # one at least
    assert latent_attention._head_blocks(16, 1) == [slice(0, 16)]
