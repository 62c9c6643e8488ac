from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtool.catalog.model import Model
from kvtool.sizing.formats import CACHE_FORMATS
from kvtool.sizing.layers import layer_specs, state_format
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.usage import GpuCache, allocated_bytes, count_specs, gpu_cache
from tests.sizing.example import ALL_KINDS, DEEPSEEK_V3, LLAMA_8B, QWEN3_NEXT

BF16 = CACHE_FORMATS["bf16"]
TOKEN = 131_072  # bytes per token of Llama-3.1-8B in bf16, on one GPU


def cache(model: Model, block_size: int = 16, **degrees: int) -> GpuCache:
    return gpu_cache(model, BF16, parallel=Parallel(**degrees), block_size=block_size, state=state_format(model))


def test_a_batch_takes_its_pages() -> None:
    specs = count_specs(layer_specs(LLAMA_8B, BF16))
    assert len(specs) == 1
    assert allocated_bytes(specs, tokens=8192, batch_size=3, block_size=16) == 3 * 8192 * TOKEN
    assert allocated_bytes(specs, tokens=8193, batch_size=1, block_size=16) == 8208 * TOKEN


def test_a_shared_prefix_is_stored_once_in_whole_pages() -> None:
    specs = count_specs(layer_specs(LLAMA_8B, BF16))
    taken = allocated_bytes(specs, tokens=8192, batch_size=8, block_size=16, shared_prefix=4096)
    assert taken == (4096 + 8 * 4096) * TOKEN
    ragged = allocated_bytes(specs, tokens=8192, batch_size=8, block_size=16, shared_prefix=4111)
    assert ragged == taken


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        ({}, 8 * 4096 * TOKEN),
        ({"tp": 4}, 8 * 4096 * TOKEN // 4),
        ({"tp": 16}, 8 * 4096 * TOKEN // 8),  # 8 KV heads: two ranks hold each
        ({"tp": 16, "dcp": 2}, 8 * 4096 * TOKEN // 16),
        ({"dp": 3}, 3 * 4096 * TOKEN),  # 8 sequences on 3 replicas: 3, 3, 2
        ({"pp": 5}, 8 * 4096 * TOKEN * 7 // 32),  # 32 layers on 5 stages: 6, 6, 7, 7, 6
    ],
)
def test_the_fullest_gpu(degrees: dict[str, int], expected: int) -> None:
    assert cache(LLAMA_8B, **degrees).bytes_per_gpu(tokens=4096, batch_size=8) == expected


def test_mla_is_copied_by_tp_and_split_by_dcp_and_dp() -> None:
    whole = 61 * 1152 * 4096
    assert cache(DEEPSEEK_V3, tp=8).bytes_per_gpu(tokens=4096, batch_size=8) == 8 * whole
    assert cache(DEEPSEEK_V3, tp=8, dcp=8).bytes_per_gpu(tokens=4096, batch_size=8) == whole
    assert cache(DEEPSEEK_V3, dp=8).bytes_per_gpu(tokens=4096, batch_size=8) == whole


def test_a_token_is_read_on_every_stage() -> None:
    read = [cache(LLAMA_8B, pp=pp).read_bytes_per_step(tokens=4096, batch_size=2) for pp in (1, 4)]
    assert read == [2 * 4096 * TOKEN] * 2


def test_state_is_neither_shared_nor_split_by_dcp() -> None:
    specs = count_specs(spec for spec in layer_specs(QWEN3_NEXT, BF16) if spec.kind == "state")
    once = allocated_bytes(specs, tokens=4096, batch_size=1, block_size=16)
    shared = allocated_bytes(specs, tokens=4096, batch_size=4, block_size=16, shared_prefix=4096, dcp=2)
    assert shared == 4 * once


def test_dp_attention_stores_mla_once_a_replica() -> None:
    """8 ranks, 16 sequences: tp alone keeps all of them on every rank, dp attention 2 on each."""

    def held(parallel: Parallel) -> int:
        cache = gpu_cache(DEEPSEEK_V3, BF16, parallel=parallel, block_size=16, state=state_format(DEEPSEEK_V3))
        return cache.bytes_per_gpu(tokens=8192, batch_size=16)

    whole = 61 * 1152 * 8192
    assert held(Parallel(tp=8)) == 16 * whole
    assert held(Parallel(tp=8, dp=8, dp_attention=True)) == 2 * whole
    assert held(Parallel(tp=8, dp=4, dp_attention=True)) == 4 * whole
    assert held(Parallel(tp=8, dp=4, dp_attention=True, dcp=2)) == 2 * whole


models = st.sampled_from(ALL_KINDS)
tokens = st.integers(1, 200_000)
batches = st.integers(1, 64)
layouts = st.sampled_from([{}, {"tp": 2}, {"tp": 8}, {"pp": 2}, {"dp": 3}, {"tp": 4, "pp": 3, "dp": 2}])


@given(model=models, length=tokens, batch_size=batches, degrees=layouts)
def test_gpus_together_hold_at_least_one_copy(
    model: Model, length: int, batch_size: int, degrees: dict[str, int]
) -> None:
    specs = count_specs(layer_specs(model, BF16))
    total = allocated_bytes(specs, tokens=length, batch_size=batch_size, block_size=16)
    per_gpu = cache(model, **degrees).bytes_per_gpu(tokens=length, batch_size=batch_size)
    assert per_gpu * Parallel(**degrees).num_gpus >= total
    assert per_gpu <= total


@given(model=models, length=tokens, batch_size=batches, data=st.data())
def test_sharing_a_prefix_never_costs_more(model: Model, length: int, batch_size: int, data: st.DataObject) -> None:
    specs = count_specs(layer_specs(model, BF16))
    shorter, longer = sorted((data.draw(st.integers(0, length)), data.draw(st.integers(0, length))))
    sizes = [
        allocated_bytes(specs, tokens=length, batch_size=batch_size, block_size=16, shared_prefix=prefix)
        for prefix in (0, shorter, longer)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] >= allocated_bytes(specs, tokens=length, batch_size=1, block_size=16)


@given(model=models, length=tokens, more=tokens, batch_size=batches)
def test_more_tokens_or_sequences_never_take_less(model: Model, length: int, more: int, batch_size: int) -> None:
    held = cache(model).bytes_per_gpu
    assert held(tokens=length, batch_size=batch_size) <= held(tokens=length + more, batch_size=batch_size)
    assert held(tokens=length, batch_size=batch_size) <= held(tokens=length, batch_size=batch_size + 1)
