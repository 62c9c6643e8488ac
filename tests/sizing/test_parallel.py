from __future__ import annotations

from dataclasses import replace

import pytest

from kvtool.catalog.model import Model
from kvtool.sizing.parallel import Parallel, check_layout, pipeline_stages
from kvtool.system.errors import KvtoolError
from tests.sizing.example import DEEPSEEK_V3, LLAMA_8B


def test_dcp_and_ep_use_no_gpus_of_their_own() -> None:
    assert Parallel(tp=8, pp=2, dp=4, dcp=8, ep=32).num_gpus == 64


@pytest.mark.parametrize(
    ("degrees", "message"),
    [
        ({"tp": 0}, "tp 0 must be at least 1"),
        ({"pp": -1}, "pp -1 must be at least 1"),
        ({"tp": 8, "dcp": 3}, "dcp 3 does not divide tp 8"),
        ({"tp": 4, "dp": 2, "ep": 3}, "ep 3 does not divide tp x dp = 8"),
        ({"tp": 8, "dp": 3, "dp_attention": True}, "dp 3 does not divide tp 8: --enable-dp-attention"),
        ({"tp": 8, "dp": 2, "dp_attention": True, "ep": 16}, "ep 16 does not divide tp = 8"),
        ({"tp": 8, "dp": 4, "dp_attention": True, "dcp": 4}, "dcp 4 does not divide the 2 ranks of attention"),
    ],
)
def test_degrees_are_checked(degrees: dict[str, int], message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        Parallel(**degrees)


@pytest.mark.parametrize(
    ("model", "parallel", "message"),
    [
        (LLAMA_8B, Parallel(pp=33), "pp 33 is more than the 32 layers"),
        (LLAMA_8B, Parallel(tp=2, ep=2), "ep 2 needs at least as many experts: llama-8b has no experts"),
        (DEEPSEEK_V3, Parallel(dp=512, ep=512), "deepseek-v3 has 256 experts"),
        (LLAMA_8B, Parallel(tp=8, dcp=2), r"dcp 2 must divide the copies that tp 8 makes of a KV head \(1\)"),
        (LLAMA_8B, Parallel(tp=4, dcp=2), "dcp 2 must divide the copies"),
    ],
)
def test_layouts_a_model_cannot_take_are_refused(model: Model, parallel: Parallel, message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        check_layout(model, parallel)


def test_dcp_may_take_what_tp_would_copy() -> None:
    check_layout(LLAMA_8B, Parallel(tp=16, dcp=2))
    check_layout(DEEPSEEK_V3, Parallel(tp=8, dcp=8))
    check_layout(replace(DEEPSEEK_V3, num_heads=64), Parallel(tp=16, dcp=4, ep=16))


def test_layers_left_over_go_before_the_last_stage() -> None:
    """vLLM's get_pp_indices: 61 layers on 4 stages are 15, 15, 16, 15."""
    assert [len(stage) for stage in pipeline_stages(range(61), 4)] == [15, 15, 16, 15]
    assert [len(stage) for stage in pipeline_stages(range(63), 4)] == [16, 16, 16, 15]
    assert pipeline_stages("abcd", 2) == [["a", "b"], ["c", "d"]]
