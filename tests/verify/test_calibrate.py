"""What a log measured, in the terms of `size --calibration`."""

from __future__ import annotations

import pytest

from kvtool.system.errors import KvtoolError
from kvtool.units import GIB
from kvtool.verify.calibrate import calibration
from tests.verify.helpers import from_text, quoted


def test_the_terms_add_up_to_what_vllm_may_use() -> None:
    measured = calibration(quoted("vllm_0_31_llama_3_1_8b.log"), "a.log")
    assert measured.weights_bytes == 15 * GIB
    assert measured.activation_bytes == round(1.44 * GIB)
    # 72.91 usable - 15.0 - 1.44 - 56.21 of pool: 0.26, which is what the log has outside torch
    assert measured.reserve_bytes == pytest.approx(0.26 * GIB, abs=1)
    assert measured.kv_pool_bytes is None
    assert measured.source == "vllm, a.log"


def test_a_pool_alone_is_kept() -> None:
    measured = calibration(quoted("vllm_qwen3_235b_tp4.log"), "log")
    assert measured.measured == {"kv_pool_bytes": round(8.11 * GIB)}


def test_activations_that_were_logged_with_the_weights() -> None:
    measured = calibration(quoted("vllm_0_6_llama_3_1_8b.log"), "log")
    assert measured.activation_bytes == pytest.approx((17.06 - 14.9888) * GIB, abs=1)


def test_sglang_tells_its_weights() -> None:
    measured = calibration(quoted("sglang_0_4_llama_3_1_8b.log"), "log")
    assert measured.measured == {"weights_bytes": round(15.02 * GIB)}


def test_nothing_measured_is_said() -> None:
    facts = from_text("Maximum concurrency for 2048 tokens per request: 10.79x")
    with pytest.raises(KvtoolError, match="nothing to save"):
        calibration(facts, "a.log")
