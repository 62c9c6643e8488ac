"""Logs from public threads (logs/SOURCES.md), with the flags that their writers had: each number as it was logged."""

from __future__ import annotations

import pytest

from kvtool.units import GIB
from kvtool.verify.kernels import kernels_card
from tests.verify.helpers import from_text, held, quoted, row, verdicts


@pytest.mark.parametrize(
    ("name", "model", "flags", "logged"),
    [
        ("vllm_0_16_qwen3_5_122b_tp2.log", "qwen3.5-122b-a10b", {}, {"tokens": 75_168, "block size": 4_176}),
        ("vllm_0_23_qwen3_6_27b_mtp2.log", "qwen3.6-27b", {}, {"tokens": 1_394_129, "blocks": 936}),
        ("vllm_0_10_qwen2_7b_tp2.log", "qwen2-7b", {}, {"tokens": 1_192_160}),
        ("vllm_qwen3_4b_awq.log", "qwen3-4b", {}, {"tokens": 268_560, "blocks": 16_785}),
        ("vllm_0_9_llama_3_1_8b_eagle.log", None, {}, {"tokens": 410_128}),
        ("vllm_0_17_qwen3_5_2b.log", None, {}, {"tokens": 129_472}),
        ("sglang_qwen3_8b_b200.log", None, {}, {"K size": round(68.18 * GIB)}),
        ("sglang_qwen3_5_9b_tp2.log", "qwen3.5-9b", {}, {"recurrent state": round(4.38 * GIB)}),
        ("sglang_deepseek_v3_2_dp8.log", "deepseek-v3.2", {"tp": 8, "dp": 8}, {"KV size": round(43.67 * GIB)}),
        ("sglang_kimi_k3_fp8.log", "kimi-k3", {"tp": 8}, {"KV size": round(15.03 * GIB)}),
        ("llama_cpp_gemma_2_2b.log", "gemma-2-2b", {}, {"SWA KV cells": 8_192, "K size": 208 << 20}),
        ("tensorrt_llm_1_1_gpt_oss_120b.log", "gpt-oss-120b", {}, {"KV cache pool": round(5.95 * GIB)}),
        ("tensorrt_llm_llama_3_1_8b_fp8.log", "llama-3.1-8b", {}, {"KV cache pool": round(16.05 * GIB)}),
    ],
)
def test_every_number_agrees(
    name: str, model: str | None, flags: dict[str, object], logged: dict[str, float | int]
) -> None:
    document = held(quoted(name), model, **flags)
    assert document.verdict == "agrees"
    assert {term: row(document, term).logged for term in logged} == logged
    assert {row(document, term).verdict for term in logged} == {"equal"}


def test_before_0_26_one_batch_is_in_flight() -> None:
    document = held(quoted("vllm_0_23_gemma_4_31b_refused.log"), "gemma-4-31b")
    assert document.verdict == "refused"
    assert verdicts(document)["one request"] == verdicts(document)["estimated max len"] == "equal"
    assert row(document, "estimated max len").logged == 8_624


def test_a_quantised_checkpoint_never_makes_a_negative_pool() -> None:
    """Weights of 36.73 GiB a GPU, logged, where bf16 would take 116: the pool follows from the logged ones."""
    document = held(quoted("vllm_0_16_qwen3_5_122b_tp2.log"), "qwen3.5-122b-a10b", "l40s")
    assert row(document, "weights").verdict == "unpredicted"
    assert "compressed-tensors" in row(document, "weights").explanation
    pool = row(document, "KV cache pool")
    assert pool.explanation == "with the weights as logged"
    assert pool.predicted is not None
    assert abs(pool.predicted - 1.73 * GIB) < 0.02 * 44 * GIB


def test_weights_of_the_quantised_repository_that_the_log_names() -> None:
    """NVIDIA's mix: attention in fp8, MLPs and output head in NVFP4; embedding, tower and draft layer in bf16."""
    document = held(quoted("vllm_0_23_qwen3_6_27b_mtp2.log"), "qwen3.6-27b")
    assert document.model == "nvidia/Qwen3.6-27B-NVFP4"
    weights = row(document, "weights")
    assert weights.predicted == pytest.approx(20.57 * GIB, rel=0.002)


@pytest.mark.parametrize(
    ("name", "gpu", "weights_error", "pool_error"),
    [
        # A folder of Kaggle's whose last part is a version; limits of images as a Python repr; 13 graphs, not 102.
        ("vllm_0_23_gemma_4_31b_kaggle.log", "rtx pro 6000", 0.006, 0.011),
        # Neither batch size is said but by what is compiled for.
        ("vllm_0_28_qwen2_5_1_5b_turing.log", None, 0.024, 0.006),
    ],
)
def test_a_pool_is_predicted_by_what_the_log_says(
    name: str, gpu: str | None, weights_error: float, pool_error: float
) -> None:
    """As far off as each term of these starts, which nothing was fitted to, is."""
    document = held(quoted(name), None, gpu)
    assert document.verdict == "agrees"
    for term, error in (("weights", weights_error), ("KV cache pool", pool_error)):
        found = row(document, term)
        assert found.predicted == pytest.approx(found.logged, rel=error)


def test_somebody_else_s_repository_has_the_weights_of_its_own_checkpoint() -> None:
    """RedHatAI's NVFP4 keeps more in bf16 than NVIDIA's of the same name: 23.32 GiB with its draft layer."""
    document = held(quoted("vllm_0_20_qwen3_6_35b_nvfp4.log"), None)
    assert document.model == "RedHatAI/Qwen3.6-35B-A3B-NVFP4"
    weights = row(document, "weights")
    assert weights.logged == round(21.86 * GIB)
    assert weights.predicted == pytest.approx(weights.logged, rel=0.002)
    assert {row(document, term).verdict for term in ("block size", "tokens", "max concurrency")} == {"equal"}


def test_the_graphs_that_were_profiled_are_those_estimated() -> None:
    graphs = row(held(quoted("vllm_0_23_gemma_4_31b_kaggle.log"), None, "rtx pro 6000"), "CUDA graphs")
    assert graphs.predicted == pytest.approx(graphs.logged, rel=0.05)  # 0.13 GiB, rounded


def test_ranks_and_worlds_tell_the_layout() -> None:
    assert held(quoted("vllm_0_10_qwen2_7b_tp2.log"), "qwen2-7b").inputs["tp"] == 2
    assert held(quoted("sglang_qwen3_5_9b_tp2.log"), "qwen3.5-9b").inputs["tp"] == 2
    told = "world_size=8 rank=5 local_rank=5 distributed_init_method=tcp://[::1]:1 backend=nccl\n"
    stages = (
        "rank 5 in world size 8 is assigned as DP rank 0, PP rank 1, TP rank 1\nAvailable KV cache memory: 9.00 GiB"
    )
    inputs = held(from_text(told + stages), "llama-3.1-8b").inputs
    assert (inputs["tp"], inputs["pp"]) == (4, 2)
    flagged = held(from_text("non-default args: {'tensor_parallel_size': 2}\n" + told + stages), "llama-3.1-8b")
    assert flagged.inputs["tp"] == 2


def test_the_bytes_of_an_untold_default_are_said_to_be_that() -> None:
    """DeepSeek-V3.2: rows of 656 + 132 B in fp8 on Blackwell, by SGLang of 2025; a dtype given is taken as it is."""
    facts = quoted("sglang_deepseek_v3_2_dp8.log")
    document = held(facts, "deepseek-v3.2", tp=8, dp=8)
    assert row(document, "KV size").predicted == (975_424 + 64) * 61 * (656 + 132)
    assert "the log tells neither its card nor its release" in row(document, "KV size").explanation
    assert held(facts, "deepseek-v3.2", tp=8, dp=8, kv_cache_dtype="bf16").verdict == "off"


def test_a_flag_of_sglang_that_explains_a_difference_is_named() -> None:
    rows, token = 100_000 + 1, 32 * 8 * 128
    facts = from_text(
        f"KV Cache is allocated. #tokens: 100000, K size: {rows * token / GIB:.2f} GB, "
        f"V size: {rows * token / GIB:.2f} GB"
    )
    document = held(facts, "llama-3.1-8b")
    assert document.verdict == "off"
    assert "--kv-cache-dtype fp8" in row(document, "K size").explanation


def test_the_dtype_that_sglang_allocated_counts_before_auto() -> None:
    facts = from_text(
        "server_args=ServerArgs(model_path='meta-llama/Llama-3.1-8B', kv_cache_dtype='auto')\n"
        "Using KV cache dtype: torch.float8_e5m2\n"
        "KV Cache is allocated. #tokens: 1000, K size: 0.03 GB, V size: 0.03 GB\n"
    )
    assert held(facts).inputs["kv_cache_dtype"] == "fp8_e5m2"


@pytest.mark.parametrize(
    ("line", "card"),
    [
        ("SymmMemCommunicator: Device capability 8.9 not supported, communicator is not available.", "L40S-48GB"),
        ("Using Triton/FLA GDN prefill kernel (requested=auto, head_k_dim=128).", "L40S-48GB"),
        ("Using FlashInfer GDN prefill kernel (requested=auto, head_k_dim=128).", "H100-SXM-80GB"),
    ],
)
def test_kernels_tell_the_kind_of_card(line: str, card: str) -> None:
    found = kernels_card(from_text(f"{line}\nAvailable KV cache memory: 9.00 GiB"))
    assert found is not None
    assert found.name == card


def test_usable_memory_alone_bears_nothing_out() -> None:
    facts = from_text(
        "Free memory on device cuda:0 (47.01/47.38 GiB) on startup. Desired GPU memory utilization is (0.9, 42.64 GiB)."
    )
    assert held(facts, "llama-3.1-8b").verdict == "uncompared"
