"""What would make a batch fit: each change is tried, and each that is named is held to the size that it leads to."""

from __future__ import annotations

from dataclasses import replace

from kvtool.results import Calibration
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.size import size
from kvtool.sizing.words.remedies import remedies
from kvtool.units import GIB
from tests.sizing.example import CARD, DEEPSEEK_V3, LLAMA_8B


def ways(context: int, batch_size: int, **options: object) -> list[str]:
    asked = SizeOptions(contexts=(context,), batch_sizes=(batch_size,), gpu=CARD, **options)  # type: ignore[arg-type]
    (found,) = remedies(LLAMA_8B, asked, size(LLAMA_8B, options=asked).rows)
    return found


def test_what_fits_needs_none() -> None:
    assert ways(8192, 1) == []


def test_every_change_that_alone_would_do_is_named() -> None:
    """51.65 GiB of room: 100 sequences of 8k take 100 GiB in bf16 and 50 GiB in fp8, 51 of them fit, and on two cards
    each has 50 GiB of them. 4,224 tokens are 264 pages of 2 MiB: 100 sequences take 51.56 GiB, with a page more 51.76.
    """
    assert ways(8192, 100) == ["fp8 cache", "--max-model-len 4224", "--batch-size 51", "--tp 2"]


def test_what_would_not_do_is_not_named() -> None:
    """16 sequences of 128k take 256 GiB, 128 GiB in fp8 and on two cards each; 26,432 tokens are 1,652 pages of 2 MiB,
    of which 16 sequences take 51.63 GiB, with a page more 51.66.
    """
    assert ways(131072, 16)[:2] == ["--max-model-len 26432", "--batch-size 3"]
    assert "--tp 2" not in ways(131072, 16)


def test_each_way_does_fit_and_a_little_less_does_not() -> None:
    options = SizeOptions(contexts=(4224, 4225), batch_sizes=(100,), gpu=CARD)
    assert [row.fit.missing_bytes == 0 for row in size(LLAMA_8B, options=options).rows] == [True, False]


def test_a_measurement_says_nothing_of_other_ranks() -> None:
    measured = Calibration(source="a log", kv_pool_bytes=20 * GIB)
    assert ways(131072, 2, calibration=measured) == ["fp8 cache", "--max-model-len 81920", "--batch-size 1"]


def test_nothing_is_named_where_no_single_change_is_enough() -> None:
    """DeepSeek-V3 on one card of 80 GB: 639 GiB of weights, 40 GiB of them on each of 16."""
    asked = SizeOptions(contexts=(4096,), batch_sizes=(1000,), gpu=CARD)
    assert remedies(DEEPSEEK_V3, asked, size(DEEPSEEK_V3, options=asked).rows) == [[]]


def test_unknown_weights_leave_it_open() -> None:
    asked = SizeOptions(contexts=(4096,), gpu=CARD)
    model = replace(LLAMA_8B, architecture=None)
    assert remedies(model, asked, size(model, options=asked).rows) == [[]]
