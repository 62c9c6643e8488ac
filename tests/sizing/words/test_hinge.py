"""What an answer hangs on most, with sizes worked by hand."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from kvtool.catalog.gpus import Gpu
from kvtool.catalog.model import Model
from kvtool.results import Calibration
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.size import size
from kvtool.sizing.words.hinge import Hinge, largest_hinge
from kvtool.units import MIB
from tests.sizing.example import CARD, DEEPSEEK_V3, LLAMA_8B, QWEN3_NEXT

ASSUMED: Gpu = msgspec.structs.replace(CARD, memory_assumed=True, memory_margin_bytes=2048 * MIB)


def hinge(model: Model, **options: object) -> Hinge | None:
    asked = SizeOptions(contexts=(32768,), **options)  # type: ignore[arg-type]
    return largest_hinge([model], asked, size(model, options=asked).rows)


def test_a_size_of_which_all_is_known_hangs_on_nothing() -> None:
    assert hinge(LLAMA_8B) is None
    assert hinge(LLAMA_8B, parallel=Parallel(tp=8)) is None


def test_on_a_card_it_is_the_estimate_that_is_furthest_off() -> None:
    found = hinge(LLAMA_8B, gpu=CARD)
    (row,) = size(LLAMA_8B, options=SizeOptions(contexts=(32768,), gpu=CARD)).rows
    runtime, activations = row.fit.reserve_margin_bytes, row.fit.activation_margin_bytes
    assert found is not None
    assert (found.size_bytes, found.whole_bytes) == (runtime, row.fit.kv_pool_bytes)
    assert runtime is not None
    assert runtime > (activations or 0)
    assert str(found).startswith("what the runtime takes, an estimate: ")
    assert str(found).endswith(f", {found.size_bytes / found.whole_bytes:.1%} of the room for cache")


def test_what_was_measured_is_no_hinge() -> None:
    measured = Calibration(source="a log", reserve_bytes=800 * MIB)
    found = hinge(LLAMA_8B, gpu=CARD, calibration=measured)
    assert found is not None
    assert found.what == "activations, an estimate"


def test_the_memory_of_a_card_is_good_to_its_margin() -> None:
    """2 GiB, of which 0.92 may be used."""
    found = hinge(LLAMA_8B, gpu=ASSUMED)
    assert found is not None
    assert found.what == "the memory of CARD-80GB"
    assert found.size_bytes == round(2048 * MIB * 0.92)


def test_a_latent_on_every_rank_is_seven_eighths_copies() -> None:
    """32,768 tokens x 70,272 B on each of 8 ranks, of which one would do."""
    found = hinge(DEEPSEEK_V3, parallel=Parallel(tp=8))
    assert found is not None
    assert found.size_bytes == 7 * 32_768 * 70_272
    assert str(found).endswith("15.01 GiB, 87.5% of what they hold at 32k x 1")


def test_recurrent_state_could_have_another_dtype() -> None:
    """36 layers of 32 x 128 x 128 elements: 36 MiB in bf16, twice that in fp32."""
    found = hinge(QWEN3_NEXT)
    assert found is not None
    assert found.what == "recurrent state in bf16, which fp32 would change"
    assert found.size_bytes == 36 * 32 * 128 * 128 * 2
    assert hinge(QWEN3_NEXT, state_dtype="fp32") is None, "asked for, not assumed"


def test_a_model_of_no_known_dtype_may_be_half_as_large() -> None:
    found = hinge(replace(LLAMA_8B, dtype=None))
    assert found is not None
    assert found.share == 0.5
    assert hinge(replace(LLAMA_8B, dtype=None), kv_cache_dtypes=("bf16",)) is None, "asked for, not assumed"
