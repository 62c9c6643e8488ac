from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtool.results import Calibration
from kvtool.sizing.engines.estimates import Estimate, Estimates
from kvtool.sizing.fit import BatchLimits, Budget, batch_limits, budget, fit, largest
from kvtool.sizing.formats import CACHE_FORMATS
from kvtool.sizing.layers import state_format
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.usage import gpu_cache
from tests.sizing.example import CARD, SLIDING

CACHE = gpu_cache(
    SLIDING, CACHE_FORMATS["bf16"], parallel=Parallel(), block_size=16, state=state_format(SLIDING)
)  # 4 window layers and 4 full ones, 4,096 B a token each
PAGE_OF_ALL = 8 * 16 * 4096


def memory(pool: int | None) -> Budget:
    return Budget(
        memory_bytes=100,
        usable_bytes=0,
        weights_bytes=None if pool is None else -pool,
        activation_bytes=0,
        reserve_bytes=0,
    )


def test_what_fits_is_told_to_the_page() -> None:
    result = fit(memory(3 * PAGE_OF_ALL), CACHE, context=32, batch_size=1, shared_prefix=0, max_context=1000)
    assert (result.fits, result.missing_bytes) == (True, 0)
    assert (result.max_batch_size, result.max_context, result.limited_by) == (1, 48, "kv cache")


def test_what_is_missing_is_told_to_the_byte() -> None:
    result = fit(memory(3 * PAGE_OF_ALL - 1), CACHE, context=48, batch_size=1, shared_prefix=0, max_context=1000)
    assert (result.fits, result.missing_bytes, result.max_context) == (False, 1, 32)


def test_the_models_own_limit_is_named() -> None:
    result = fit(memory(1 << 40), CACHE, context=48, batch_size=1, shared_prefix=0, max_context=1000)
    assert (result.max_context, result.limited_by) == (1000, "max_position_embeddings")


def test_weights_alone_may_be_too_much() -> None:
    result = fit(memory(-5), CACHE, context=16, batch_size=1, shared_prefix=0, max_context=None)
    assert (result.fits, result.kv_pool_bytes, result.limited_by) == (False, 0, "weights")
    assert (result.missing_bytes, result.max_batch_size, result.max_context) == (PAGE_OF_ALL + 5, 0, 0)


def test_an_answer_is_no_only_where_the_margin_would_not_help() -> None:
    """A pool of three pages of all layers, give or take one: two fit, three and four within the margin, five do not."""
    pool = replace(memory(0), measured_pool_bytes=3 * PAGE_OF_ALL, margin_bytes=PAGE_OF_ALL)

    def asked(pages: int) -> tuple[bool | None, str | None]:
        found = fit(pool, CACHE, context=16, batch_size=pages, shared_prefix=0, max_context=None)
        return found.fits, found.verdict

    assert asked(2) == (True, "fits")
    assert asked(3) == asked(4) == (True, "fits, within the margin")
    assert asked(5) == (False, "no")


def test_unknown_weights_give_no_verdict() -> None:
    result = fit(memory(None), CACHE, context=16, batch_size=1, shared_prefix=0, max_context=None)
    assert (result.fits, result.max_context, result.limited_by) == (None, None, "unknown weights")


@pytest.mark.parametrize(
    ("name", "memory_bytes", "limits"),
    [
        ("H100-SXM-80GB", 80_000_000_000, (8192, 1024)),
        ("A100-SXM-80GB", 80_000_000_000, (2048, 256)),
        ("GB10", 128_000_000_000, (2048, 256)),
        ("L40S-48GB", 48_000_000_000, (2048, 256)),
        ("B200-SXM-180GB", 180_000_000_000, (16384, 1024)),
    ],
)
def test_an_engine_runs_in_a_step_what_vllm_serve_would(name: str, memory_bytes: int, limits: tuple[int, int]) -> None:
    """get_batch_defaults of vLLM 0.33.0."""
    found = batch_limits(msgspec.structs.replace(CARD, name=name, memory_bytes=memory_bytes))
    assert (found.tokens, found.sequences) == limits


def test_what_is_asked_bounds_a_step() -> None:
    assert batch_limits(CARD, tokens=4096, sequences=8) == BatchLimits(tokens=4096, sequences=8)
    assert batch_limits(CARD, sequences=2, max_model_len=512) == BatchLimits(tokens=1024, sequences=2)
    assert batch_limits(CARD, sequences=9000) == BatchLimits(tokens=9000, sequences=9000)


def taken(size: int, margin: int) -> Estimate:
    return Estimate(bytes=size, margin_bytes=margin, text="by hand")


TAKEN = Estimates(
    activation=taken(1_500_000_000, 60_000_000),
    runtime=taken(250_000_000, 20_000_000),
    graphs=taken(750_000_000, 500_000_000),
)


def test_the_pool_of_llama_by_hand() -> None:
    """0.92 x 80 GB, less 8,030,261,248 parameters in 16 bits, and what is estimated; their margins add up."""
    memory = budget(CARD, TAKEN, weights_bytes=16_060_522_496, utilization=0.92)
    assert (memory.usable_bytes, memory.activation_bytes) == (73_600_000_000, 1_500_000_000)
    assert memory.kv_pool_bytes == 73_600_000_000 - 16_060_522_496 - 2_500_000_000
    assert memory.margin_bytes == 580_000_000
    odd = budget(CARD, TAKEN, weights_bytes=0, utilization=1 / 3)
    assert odd.usable_bytes == 26_666_666_667  # rounded up, as vLLM does


def test_measured_terms_replace_estimates_one_by_one() -> None:
    def calibrated(**terms: int) -> Budget:
        measured = Calibration(source="a log", **terms)
        return budget(CARD, TAKEN, weights_bytes=16_000_000_000, utilization=0.9, calibration=measured)

    weights = calibrated(weights_bytes=15_000_000_000)
    assert weights.kv_pool_bytes == 72_000_000_000 - 15_000_000_000 - 2_500_000_000
    rest = calibrated(activation_bytes=1_000_000_000, reserve_bytes=500_000_000)
    assert (rest.kv_pool_bytes, rest.margin_bytes) == (72_000_000_000 - 16_000_000_000 - 1_500_000_000, 0)
    pool = calibrated(kv_pool_bytes=50_000_000_000, activation_bytes=1_000_000_000)
    assert (pool.kv_pool_bytes, pool.margin_bytes) == (50_000_000_000, 0)
    assert pool.measured == ("activation_bytes", "kv_pool_bytes")


def test_a_measured_pool_needs_no_weights() -> None:
    measured = Calibration(source="a log", kv_pool_bytes=3 * PAGE_OF_ALL)
    known = budget(CARD, TAKEN, weights_bytes=None, utilization=0.9, calibration=measured)
    result = fit(known, CACHE, context=48, batch_size=1, shared_prefix=0, max_context=1000)
    assert (result.fits, result.weights_bytes, result.kv_pool_bytes) == (True, None, 3 * PAGE_OF_ALL)
    assert result.measured == ["kv_pool_bytes"]


@given(limit=st.integers(0, 10_000), threshold=st.integers(0, 20_000))
def test_largest_finds_the_threshold(limit: int, threshold: int) -> None:
    assert largest(lambda n: n <= threshold, limit) == min(limit, threshold)


@given(pool=st.integers(0, 1 << 34), context=st.integers(1, 100_000), batch=st.integers(1, 50))
def test_the_answers_fit_and_one_more_does_not(pool: int, context: int, batch: int) -> None:
    result = fit(memory(pool), CACHE, context=context, batch_size=batch, shared_prefix=0, max_context=None)
    assert result.max_batch_size is not None
    assert result.max_context is not None
    held = CACHE.bytes_per_gpu
    assert held(tokens=context, batch_size=result.max_batch_size) <= pool
    assert held(tokens=context, batch_size=result.max_batch_size + 1) > pool
    assert result.max_context == 0 or held(tokens=result.max_context, batch_size=batch) <= pool
    assert held(tokens=result.max_context + 1, batch_size=batch) > pool


def test_what_others_keep_bounds_what_may_be_used() -> None:
    """24 GiB of which 9 are taken: 15 are there, not 0.92 of the card. A margin of the card is one of the pool."""
    card = msgspec.structs.replace(CARD, memory_bytes=24 << 30, kept_bytes=9 << 30)
    found = budget(card, TAKEN, weights_bytes=0, utilization=0.92)
    assert found.usable_bytes == 15 << 30
    sure = msgspec.structs.replace(card, memory_margin_bytes=1 << 30, kept_bytes=0)
    wider = budget(sure, TAKEN, weights_bytes=0, utilization=0.92)
    assert wider.margin_bytes - found.margin_bytes == pytest.approx(0.92 * (1 << 30), abs=1)
    assert wider.usable_bytes == math.ceil(0.92 * (24 << 30))
