from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from kvtool.catalog.gpus import Gpu
from kvtool.catalog.model import Model
from kvtool.results import SizeDecode
from kvtool.sizing.formats import CACHE_FORMATS
from kvtool.sizing.layers import state_format
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.speed.decode import decode_floor
from kvtool.sizing.speed.traffic import decode_work
from kvtool.sizing.usage import gpu_cache
from kvtool.sizing.weights import weigh
from tests.sizing.example import CARD, LLAMA_8B


def floor(model: Model = LLAMA_8B, gpu: Gpu | None = CARD, batch_size: int = 1, **degrees: int) -> SizeDecode:
    parallel = Parallel(**degrees)
    cache = gpu_cache(model, CACHE_FORMATS["bf16"], parallel=parallel, block_size=16, state=state_format(model))
    return decode_floor(decode_work(model), cache, weigh(model), parallel, gpu, context=8192, batch_size=batch_size)


def test_one_sequence_waits_for_memory() -> None:
    decode = floor()
    read = decode.kv_read_bytes_per_step + 15_009_849_344
    assert decode.kv_read_bytes_per_step == 8192 * 131_072
    assert decode.ideal_tpot_ms == pytest.approx(read / 2000e9 * 1e3)
    assert decode.bound == "memory"


def test_many_sequences_of_few_tokens_wait_for_arithmetic() -> None:
    one_token = replace(LLAMA_8B, num_heads=32)
    cache = gpu_cache(
        one_token, CACHE_FORMATS["fp8"], parallel=Parallel(), block_size=16, state=state_format(one_token)
    )
    decode = decode_floor(decode_work(one_token), cache, weigh(one_token), Parallel(), CARD, context=1, batch_size=4096)
    assert decode.bound == "compute"
    assert decode.flops_per_step is not None
    assert decode.ideal_tpot_ms == pytest.approx(decode.flops_per_step / 1000e12 * 1e3)


def test_tensor_and_data_parallel_share_the_work_and_pipelines_do_not() -> None:
    alone, tp, dp, pp = (
        floor(batch_size=4),
        floor(batch_size=4, tp=2),
        floor(batch_size=4, dp=2),
        floor(batch_size=4, pp=2),
    )
    assert alone.flops_per_step is not None
    assert tp.flops_per_step == dp.flops_per_step == alone.flops_per_step / 2
    assert tp.kv_read_bytes_per_step == dp.kv_read_bytes_per_step == alone.kv_read_bytes_per_step / 2
    assert pp == alone


def test_the_floor_takes_what_is_known_of_the_card() -> None:
    assert floor(gpu=None).ideal_tpot_ms is None
    slow = msgspec.structs.replace(CARD, bf16_tflops=None)
    assert (floor(gpu=slow).ideal_tpot_ms, floor(gpu=slow).bound) == (floor().ideal_tpot_ms, None)
    unmeasured = msgspec.structs.replace(CARD, memory_bandwidth_gbps=None)
    assert (floor(gpu=unmeasured).ideal_tpot_ms, floor(gpu=unmeasured).bound) == (None, None)
    assert floor(replace(LLAMA_8B, architecture=None)).ideal_tpot_ms is None
