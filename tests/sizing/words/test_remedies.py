"""What would make a batch fit: each change is tried, and each that is named is held to the size that it leads to."""

from __future__ import annotations

from dataclasses import replace

from kvtool.catalog.model import Model
from kvtool.results import Calibration
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.size import size
from kvtool.sizing.words.remedies import remedies
from kvtool.units import GIB
from tests.sizing.example import CARD, DEEPSEEK_V3, LLAMA_8B

# 50 GiB of room, 25,600 pages of 16 tokens of 131,072 B.
MEASURED = Calibration(source="a log", kv_pool_bytes=50 * GIB)


def asked(context: int, batch_size: int, **options: object) -> SizeOptions:
    return SizeOptions(contexts=(context,), batch_sizes=(batch_size,), gpu=CARD, **options)  # type: ignore[arg-type]


def ways(options: SizeOptions, model: Model = LLAMA_8B) -> list[str]:
    (found,) = remedies(model, options, size(model, options=options).rows)
    return found


def missing(**changes: object) -> int | None:
    """Bytes that 16 sequences of 128k lack under other options."""
    (row,) = size(LLAMA_8B, options=asked(131072, 16, **changes)).rows
    return row.fit.missing_bytes


def test_what_fits_needs_none() -> None:
    assert ways(asked(8192, 1)) == []


def test_every_change_that_alone_would_do_is_named() -> None:
    """100 sequences of 8k take 100 GiB in bf16 and 50 GiB in fp8, 50 of them 50 GiB, and so do 100 of 4k."""
    assert ways(asked(8192, 100, calibration=MEASURED)) == ["fp8 cache", "--max-model-len 4096", "--batch-size 50"]


def test_what_would_not_do_is_not_named() -> None:
    """101 of them take 50.5 GiB in fp8; 25,600 pages are 253 for each."""
    assert ways(asked(8192, 101, calibration=MEASURED)) == ["--max-model-len 4048", "--batch-size 50"]
    assert ways(asked(131072, 4, calibration=MEASURED, kv_cache_dtypes=("fp8",))) == []


def test_the_fewest_ranks_that_hold_it_are_named() -> None:
    last = ways(asked(131072, 16))[-1]
    ranks = int(last.removeprefix("--tp "))
    assert missing(parallel=Parallel(tp=ranks)) == 0
    assert missing(parallel=Parallel(tp=ranks // 2))


def test_a_measurement_says_nothing_of_other_ranks() -> None:
    assert not any("--tp" in way for way in ways(asked(131072, 16, calibration=MEASURED)))


def test_nothing_is_named_where_no_single_change_is_enough() -> None:
    """DeepSeek-V3 on one card of 80 GB: 639 GiB of weights, 40 GiB of them on each of 16."""
    assert ways(asked(4096, 1000), DEEPSEEK_V3) == []


def test_unknown_weights_leave_it_open() -> None:
    assert ways(asked(4096, 1), replace(LLAMA_8B, architecture=None)) == []
