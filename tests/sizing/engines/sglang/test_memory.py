from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from kvtool.catalog.gpus import find_gpu
from kvtool.catalog.resolve import resolve_model
from kvtool.sizing.engines.estimates import Estimate, Estimates
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.sglang.memory import (
    START_BYTES,
    chunked_prefill_size,
    estimate_pool_bytes,
    mem_fraction_static,
)
from kvtool.sizing.fit import budget
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.size import size
from kvtool.system.errors import KvtoolError
from kvtool.units import GIB, MIB

H100 = msgspec.structs.replace(find_gpu("h100"), memory_bytes=81559 * MIB)  # what nvidia-smi says of it
OPTIONS = EngineOptions(name="sglang", gpu=H100)


def test_default_fraction_by_hand() -> None:
    """memory_hook.py, handle_gpu_memory_settings: 512 + 1.5 x 8192 + 1024 / 8 for tp 1 + 2 x 256 for decode graphs + 8
    for each of 58 prefill graphs = 13904 MiB of 81559.
    """
    assert mem_fraction_static(OPTIONS, H100, mla=False) == round((81559 - 13904) / 81559, 3) == 0.83


def test_mla_has_larger_prefill_graphs_and_dp_attention_larger_decode_graphs() -> None:
    tp8 = replace(OPTIONS, parallel=Parallel(tp=8))
    assert mem_fraction_static(tp8, H100, mla=True) == round((81559 - (512 + 12288 + 1024 + 1024 + 1536)) / 81559, 3)
    dp8 = replace(OPTIONS, parallel=Parallel(tp=8, dp=8, ep=8, dp_attention=True))
    reserved = 512 + 12288 + 1024 + 1024 + 512 * 8 * 4.5 + 1536
    assert mem_fraction_static(dp8, H100, mla=True) == round((81559 - reserved) / 81559, 3)


def test_a_small_decode_graph_still_leaves_10_gib_on_a_large_card() -> None:
    small = replace(OPTIONS, chunked_prefill_size=2048, max_running_requests=8)
    assert mem_fraction_static(small, H100, mla=False) == round((81559 - 10240) / 81559, 3)


@pytest.mark.parametrize(
    ("card", "chunk"), [("t4", 2048), ("rtx-4090", 4096), ("l40s", 4096), ("h200", 8192), ("b200", 16384)]
)
def test_chunks_by_card(card: str, chunk: int) -> None:
    assert chunked_prefill_size(replace(OPTIONS, gpu=find_gpu(card))) == chunk
    assert chunked_prefill_size(replace(OPTIONS, gpu=find_gpu(card), chunked_prefill_size=512)) == 512


@pytest.mark.parametrize("part", [0.0, -0.5, 1.5, float("nan")])
def test_a_part_of_a_card_is_no_more_than_the_card(part: float) -> None:
    card = find_gpu("h100")
    with pytest.raises(KvtoolError, match=r"--mem-fraction-static .* must be above 0 and at most 1"):
        mem_fraction_static(EngineOptions(name="sglang", mem_fraction_static=part), card, mla=False)


def test_the_flag_wins_and_the_pool_is_what_weights_leave() -> None:
    """kv_cache_configurator.py, _profile_available_bytes: free after load less (1 - fraction) of free before it."""
    options = replace(OPTIONS, mem_fraction_static=0.75)
    llama = resolve_model("llama-3.1-8b")
    each = Estimate(bytes=GIB, margin_bytes=0, text="by hand")
    taken = Estimates(activation=each, runtime=each, graphs=each)
    memory = budget(H100, taken, weights_bytes=16 * GIB, utilization=0.92)
    pool = estimate_pool_bytes(llama, options, memory)
    assert pool == pytest.approx((H100.memory_bytes - START_BYTES) * 0.75 - 16 * GIB, abs=1)
    assert estimate_pool_bytes(llama, options, replace(memory, weights_bytes=None)) is None


def test_the_pool_of_a_public_start() -> None:
    """Qwen3.5-9B on two RTX 4090s, --mem-fraction-static 0.8: K and V 5.00, states 4.48 GiB a GPU (April 2026). Its
    22.93 GiB before loading are what START_BYTES is of; the weights are kvtool's own, without the draft layer.
    """
    card = find_gpu("rtx-4090")
    start = EngineOptions(name="sglang", gpu=card, mem_fraction_static=0.8)
    options = SizeOptions(contexts=(1024,), engine=start, gpu=card, parallel=Parallel(tp=2))
    row = size(resolve_model("qwen3.5-9b"), options=options).rows[0]
    assert row.engine.pool_bytes is not None
    assert row.engine.pool_bytes / GIB == pytest.approx(5.00 + 4.48, abs=0.1)
    assert row.fit.margin_bytes is not None
    assert 0.1 * GIB < row.fit.margin_bytes <= 0.04 * card.memory_bytes
