"""Where a cache passes the weights: worked by hand."""

from __future__ import annotations

from dataclasses import replace

from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.plan import make_plan
from kvtool.sizing.words.passing import passing_tokens
from tests.sizing.example import LLAMA_8B

WEIGHTS = 8_030_261_248 * 2


def test_a_sequence_and_a_batch_pass_the_weights() -> None:
    """Pages of 16 tokens of 131,072 B: the first page that takes more than the weights."""
    pages = WEIGHTS // (16 * 131072)
    assert passing_tokens(make_plan(LLAMA_8B, SizeOptions()), 1) == pages * 16 + 1
    assert passing_tokens(make_plan(LLAMA_8B, SizeOptions()), 8) == pages // 8 * 16 + 1


def test_ranks_that_share_out_both_pass_where_one_does() -> None:
    split = make_plan(LLAMA_8B, SizeOptions(parallel=Parallel(tp=8)))
    assert passing_tokens(split, 1) == passing_tokens(make_plan(LLAMA_8B, SizeOptions()), 1)


def test_no_context_is_told_that_the_model_does_not_take_or_without_weights() -> None:
    assert passing_tokens(make_plan(LLAMA_8B, SizeOptions(max_model_len=8192)), 1) is None
    assert passing_tokens(make_plan(replace(LLAMA_8B, architecture=None), SizeOptions()), 1) is None
