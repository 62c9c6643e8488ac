"""Lines that SGLang printed on other people's machines: for the pool that gives their tokens, the planner's are equal.

The bytes of a pool are not in the logs (they lie within a page of the tokens), so they are taken from the tokens; what
is tested is the way back, the split between pools, and the sizes that the logs print.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvtool.catalog.gpus import find_gpu
from kvtool.catalog.model import FullAttention, Layer, Mamba2, Model
from kvtool.catalog.resolve import resolve_model
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.sglang import plan, size_engine
from kvtool.sizing.parallel import Parallel
from kvtool.units import GIB
from tests.sizing.engines.sglang.example import gemma_4_e4b, mimo_v2_flash

SGLANG = EngineOptions(name="sglang")


def log_of(model: Model, options: EngineOptions, pool_bytes: int) -> list[str]:
    engine = size_engine(plan(model, options, pool_bytes=pool_bytes))
    assert engine.refusal is None
    assert engine.log_line is not None
    return engine.log_line.splitlines()


def test_qwen3_235b_on_4_h100() -> None:
    """vllm-project/vllm#21348: `KV Cache is allocated. #tokens: 367404, K size: 8.23 GB, V size: 8.23 GB` (tp 4)."""
    bytes_per_token = 94 * 2 * 128 * 2  # one of four KV heads on each rank
    options = replace(SGLANG, gpu=find_gpu("h100"), parallel=Parallel(tp=4))
    lines = log_of(resolve_model("qwen3-235b-a22b"), options, 367404 * bytes_per_token + 5)
    assert lines[0].endswith("#tokens: 367404, K size: 8.23 GB, V size: 8.23 GB")


def test_deepseek_v32_on_8_b200() -> None:
    """sgl-project/sglang#11309 (DP attention, fp8 with scales then): `#tokens: 975424, KV size: 43.67 GB`. B200 has
    raw rows today; Hopper's still are 656 bytes, and 132 of index keys.
    """
    bytes_per_token = 61 * (656 + 132)
    options = replace(
        SGLANG, gpu=find_gpu("h200"), kv_cache_dtype="fp8", parallel=Parallel(dp=8, ep=8), enable_dp_attention=True
    )
    lines = log_of(resolve_model("deepseek-v3.2"), options, 975424 * bytes_per_token)
    assert lines[0].endswith("#tokens: 975424, KV size: 43.67 GB")


def test_mimo_v2_flash_with_page_64() -> None:
    """sgl-project/sglang#18039: full_layer_tokens=375360, swa_layer_tokens=300288; K size: 8.38 GB, V size: 5.59 GB of
    the sliding pool (tp 4, page 64).
    """
    full, sliding = 9 * 1 * (192 + 128) * 2, 39 * 2 * (192 + 128) * 2
    options = replace(SGLANG, gpu=find_gpu("h100"), parallel=Parallel(tp=4), block_size=64)
    lines = log_of(mimo_v2_flash(), options, int(375360 * (full + 0.8 * sliding)) + 64)
    assert lines[0] == "Use sliding window memory pool. full_layer_tokens=375360, swa_layer_tokens=300288"
    assert lines[2].endswith("#tokens: 300288, K size: 8.38 GB, V size: 5.59 GB")


def test_mimo_v2_flash_with_equal_pools() -> None:
    """sgl-project/sglang#15464: K 41.76 and V 27.84 GB of windows, 4.82 and 3.21 GB of full layers, 77.63 GB in all."""
    full, sliding = 9 * 1 * (192 + 128) * 2, 39 * 2 * (192 + 128) * 2
    options = replace(SGLANG, gpu=find_gpu("h200"), parallel=Parallel(tp=4), swa_full_tokens_ratio=1.0)
    lines = log_of(mimo_v2_flash(), options, 1496958 * (full + sliding))
    assert lines[1].endswith("#tokens: 1496958, K size: 4.82 GB, V size: 3.21 GB")
    assert lines[2].endswith("#tokens: 1496958, K size: 41.76 GB, V size: 27.84 GB")
    assert lines[3] == "SWAKVPool mem usage: 77.63 GB, swa size: 1496958, full size: 1496958"


def test_gemma_4_e4b_allocates_its_sharing_layers() -> None:
    """A public run of google/gemma-4-E4B-it on a GB10 (SGLang dev1+g5f55db35e): `SWAKVPool mem usage: 79.94 GB, swa
    size: 798276, full size: 997846`, which is all 42 layers although 18 of them share K and V.
    """
    full, sliding = 7 * 2 * (512 + 512) * 2, 35 * 2 * (256 + 256) * 2
    lines = log_of(gemma_4_e4b(), SGLANG, int(997846 * (full + 0.8 * sliding)) + 9)
    assert "SWAKVPool mem usage: 79.94 GB, swa size: 798276, full size: 997846" in lines


def test_state_slots_of_granite_4_h_small() -> None:
    """A public run of granite-4.0-h-small on an H200: `max_mamba_cache_size: 218, conv_state size: 0.37GB, ssm_state
    size: 30.80GB`: 36 Mamba-2 layers in fp32, 219 slots with the one for padding.
    """
    mamba = Layer(cache=Mamba2(heads=128, head_dim=64, state_dim=128, groups=1, conv_kernel=4))
    full = Layer(cache=FullAttention(kv_heads=8, k_head_dim=128, v_head_dim=128))
    granite = replace(gemma_4_e4b(), architecture="granitemoehybrid", layers=(*(mamba,) * 9, full) * 4)
    slot = 36 * (128 * 64 * 128 * 4 + (128 * 64 + 2 * 128) * 3 * 2)
    lines = log_of(granite, SGLANG, round(219 * slot * 1.9 / 0.9) + slot // 2)
    assert (
        lines[0]
        == "Mamba Cache is allocated. max_mamba_cache_size: 218, conv_state size: 0.37GB, ssm_state size: 30.80GB"
    )


def test_a_slot_of_qwen_3_8() -> None:
    """sgl-project/sglang#37066: 0.35 GB for 5 slots and 0.63 GB for 9 (bf16 state of a Qwen3.8-27B): 71.7 MiB each."""
    options = replace(SGLANG, mamba_ssm_cache_dtype="bf16", max_mamba_cache_size=8, enable_prefix_caching=False)
    lines = log_of(resolve_model("qwen3.5-27b"), options, 8 * GIB)
    assert "max_mamba_cache_size: 8, conv_state size: 0.02GB, ssm_state size: 0.63GB" in lines[0]


@pytest.mark.parametrize(("card", "tokens"), [("b200", 994432), ("h200", 893504)])
def test_rows_of_sparse_mla_depend_on_the_card(card: str, tokens: int) -> None:
    """40 GiB: raw rows of 576 bytes (trtllm) against scaled ones of 656 (flashmla_kv), with 132 of index keys."""
    options = replace(SGLANG, gpu=find_gpu(card), kv_cache_dtype="fp8", parallel=Parallel(tp=8))
    planned = plan(resolve_model("deepseek-v3.2"), options, pool_bytes=40 * GIB)
    row = 576 if card == "b200" else 656
    assert planned.allocation is not None
    assert planned.allocation.max_total_num_tokens == tokens == 40 * GIB // (61 * (row + 132)) // 64 * 64
