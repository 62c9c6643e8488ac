"""What vLLM loads beside the weights: hand-worked from its code, each beside the log line that it explains."""

from __future__ import annotations

import pytest

from kvtool.catalog.models_yaml import load_catalogue
from kvtool.sizing.engines.vllm.loaded import (
    absorbed_bytes,
    beside_weights,
    padding_bytes,
    rounding_bytes,
    table_bytes,
    workspace_bytes,
)
from kvtool.sizing.engines.vllm.versions import rules_at
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.weights import weigh
from kvtool.units import GIB, MIB

CATALOGUE = load_catalogue()


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("llama-3.1-8b", 131072 * 128 * 2),
        ("gemma-3-4b", (8 + 1) * 131072 * 256 * 2),  # full layers scaled by 8, and windows by their own theta
        ("deepseek-v2-lite", 163840 * 64 * 2),
        ("qwen3-vl-30b-a3b", 4 * 262144 * 128 * 2),  # for long videos
        ("gpt2", 0),
        ("gpt2-xl", 0),
    ],
)
def test_tables_of_positions(name: str, size: int) -> None:
    assert table_bytes(CATALOGUE.get(name)) == size


def test_the_table_of_yarn_is_in_fp32_where_flashinfer_rotates() -> None:
    """DeepseekScalingRotaryEmbedding: a custom operation, which compilation turns off."""
    lite, llama = CATALOGUE.get("deepseek-v2-lite"), CATALOGUE.get("llama-3.1-8b")
    assert table_bytes(lite, fp32_yarn=True) == 163840 * 64 * 4
    assert table_bytes(llama, fp32_yarn=True) == table_bytes(llama)
    assert [rules_at(version).flashinfer_rotation for version in ("0.13", "0.14")] == [False, True]


def test_torch_rounds_large_tensors_up_to_two_mebibytes_where_little_is_left() -> None:
    """CUDACachingAllocator.cpp: get_allocation_size, should_split."""
    assert [rounding_bytes(size * MIB) for size in (10, 11, 259, 500)] == [0, MIB, MIB, 0]
    assert rounding_bytes(10 * MIB + 1) == 0  # 2 MiB less a byte are left: enough for another tensor
    assert rounding_bytes(9 * MIB) == 0


@pytest.mark.parametrize(
    ("name", "tp", "logged_gib"),
    [
        ("gemma-3-4b", 1, 8.58),
        ("gemma-2-2b", 1, 4.90),
        ("llama-3.1-8b", 2, 7.51),
        ("kimi-dev-72b", 4, 34.01),
        (
            "deepseek-v2-lite",
            1,
            29.43,
        ),  # MiB beside its parameters: 128 workspace, 20 table, 26 rounded
    ],
)
def test_weights_are_what_vllm_logs_as_loaded(name: str, tp: int, logged_gib: float) -> None:
    """ "Model loading took" of five starts of 0.19, examples/accuracy/starts.csv."""
    weights, parallel = weigh(CATALOGUE.get(name)), Parallel(tp=tp)
    loaded = (weights.bytes_per_gpu(parallel) or 0) + beside_weights(weights, parallel, 90, rules_at("0.19")).bytes
    assert loaded / GIB == pytest.approx(logged_gib, abs=0.015)


def test_kernels_of_mla_take_a_workspace_where_a_start_looks_through_them() -> None:
    """flashinfer_mla.py and cutlass_mla.py allocate 128 MiB each when they are imported: the former until 0.24, the
    latter among the kernels of Blackwell (platforms/cuda.py: _get_backend_priorities).
    """
    lite = CATALOGUE.get("deepseek-v2-lite")
    taken = {
        (version, capability): workspace_bytes(lite, capability, rules_at(version)) // (128 * MIB)
        for version in ("0.10", "0.19", "0.25", "0.33")
        for capability in (None, 90, 100)
    }
    assert [taken[version, 90] for version in ("0.10", "0.19", "0.25", "0.33")] == [0, 1, 0, 0]
    assert [taken[version, 100] for version in ("0.10", "0.19", "0.25", "0.33")] == [1, 2, 1, 1]
    assert taken["0.19", None] == workspace_bytes(CATALOGUE.get("llama-3.1-8b"), 100, rules_at("0.19")) == 0


def test_experts_in_mxfp4_are_padded_for_their_kernel() -> None:
    """gpt-oss on 4 GPUs: 2,880 / 4 = 720 to 768 and 2,880 to 3,072 for Marlin, 720 to 768 for Triton; 4.25 bits."""
    weights = weigh(CATALOGUE.get("gpt-oss-120b"))
    each = 36 * 128 * 3 * 4.25 / 8
    assert padding_bytes(weights, Parallel(tp=4), 80) == round(each * (768 * 3072 - 720 * 2880))
    assert padding_bytes(weights, Parallel(tp=4), 90) == round(each * (768 - 720) * 2880)
    assert padding_bytes(weights, Parallel(), 90) == 0
    assert padding_bytes(weigh(CATALOGUE.get("deepseek-v2-lite")), Parallel(tp=8), 80) == 0


def test_what_mla_multiplies_latents_with_is_unpacked_where_it_is_stored_in_8_bits() -> None:
    """DeepSeek-V3 in fp8 on 8 GPUs: 61 layers x 16 heads x (128 + 128) x 512 in bf16; V2-Lite's are views."""
    kept = absorbed_bytes(weigh(CATALOGUE.get("deepseek-v3")), Parallel(tp=8))
    assert kept == 61 * 16 * (128 + 128) * 512 * 2
    assert absorbed_bytes(weigh(CATALOGUE.get("deepseek-v2-lite")), Parallel()) == 0
