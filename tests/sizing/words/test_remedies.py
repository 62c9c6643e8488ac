"""What would make a batch fit: each change is tried, and each that is named is held to the size that it leads to."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from kvtool.catalog.model import Model
from kvtool.results import Calibration
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.size import size
from kvtool.sizing.words.remedies import WEIGHTS, remedies
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


def flags(found: list[str]) -> list[str]:
    return [way.partition(":")[0] for way in found]


def test_changes_that_alone_would_do_are_named_the_mildest_first() -> None:
    """100 sequences of 8k take 100 GiB in bf16 and 50 GiB in fp8, 50 of them 50 GiB, and so do 100 of 4k."""
    assert ways(asked(8192, 100, calibration=MEASURED)) == [
        "--kv-cache-dtype fp8: gains 50 GiB; keys and values in 8 bits",
        "--context 4096: gains 50 GiB; requests of 4,096 tokens, 50% of what was asked",
        "--batch-size 50: gains 50 GiB; 50 of 100 sequences at a time",
    ]


def test_what_would_not_do_is_not_named() -> None:
    """101 of them take 50.5 GiB in fp8; 25,600 pages are 253 for each."""
    found = ways(asked(8192, 101, calibration=MEASURED))
    assert flags(found) == ["--batch-size 50", "--context 4048"]
    assert ways(asked(131072, 4, calibration=MEASURED, kv_cache_dtypes=("fp8",))) == []


def test_the_fewest_ranks_that_hold_it_are_named() -> None:
    (wider,) = [way for way in flags(ways(asked(131072, 16))) if way.startswith("--tp ")]
    ranks = int(wider.removeprefix("--tp "))
    assert missing(parallel=Parallel(tp=ranks)) == 0
    assert missing(parallel=Parallel(tp=ranks // 2))


def test_a_measurement_says_nothing_of_other_ranks() -> None:
    assert not any("--tp" in way for way in ways(asked(131072, 16, calibration=MEASURED)))


def test_a_share_of_the_card_may_be_enough() -> None:
    """0.97 of 80 GB less 0.92 of it is 3.73 GiB; 55 sequences of 8k take 55 GiB."""
    assert ways(asked(8192, 55))[0].startswith("--gpu-memory-utilization 0.97: gains 3.73 GiB; leaves 2.24 GiB ")


def test_weights_in_8_bits_may_be_enough() -> None:
    """16 GB of weights in a card of 18 GB: in fp8 all but embedding and head, 0.98 GiB each, take half."""
    small = msgspec.structs.replace(CARD, memory_bytes=18_000_000_000)
    assert ways(SizeOptions(contexts=(8192,), gpu=small))[0] == f"--weight-dtype fp8: gains 6.5 GiB; {WEIGHTS['fp8']}"


def test_formats_and_ranks_go_together_where_neither_alone_is_enough() -> None:
    """DeepSeek-V3 in bf16 has 80 GiB of weights on each of 16 ranks, in 4 bits 20 GiB, beside 200 latents of 4k."""
    assert flags(ways(asked(4096, 200), DEEPSEEK_V3)) == ["--tp 16 --weight-dtype int4 --kv-cache-dtype fp8"]
    assert ways(asked(4096, 400), DEEPSEEK_V3) == []


def test_an_engine_that_would_not_start_is_helped_too() -> None:
    """16 GiB for the 131,072 tokens of Llama 3.1 in a pool of 1 GiB: 511 blocks of 16 beside the null block."""
    engine = EngineOptions(name="vllm", kv_cache_memory_bytes=GIB)
    options = SizeOptions(contexts=(4096,), engine=engine)
    assert ways(options) == ["--max-model-len 8176: gains 15 GiB; no request longer than 8,176 tokens"]
    told = ways(SizeOptions(contexts=(16384,), engine=engine))
    assert flags(told)[0] == "--max-model-len 8176 --context 8176"  # either alone would be refused


def test_unknown_weights_leave_it_open() -> None:
    assert ways(asked(4096, 1), replace(LLAMA_8B, architecture=None)) == []
