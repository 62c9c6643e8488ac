from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvtool.sizing.fit import Budget, activation_bytes, fit, largest
from kvtool.sizing.formats import CACHE_FORMATS
from kvtool.sizing.layers import state_format
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.usage import gpu_cache
from tests.sizing.example import CARD, LLAMA_8B, SLIDING

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


def test_unknown_weights_give_no_verdict() -> None:
    result = fit(memory(None), CACHE, context=16, batch_size=1, shared_prefix=0, max_context=None)
    assert (result.fits, result.max_context, result.limited_by) == (None, None, "unknown weights")


def test_activations_of_llama_by_hand() -> None:
    rows, logits = 8192 * (4 * 4096 + 3 * 14336) * 2, 1024 * 128256 * 4
    assert activation_bytes(CARD, LLAMA_8B, Parallel()) == rows + logits


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
