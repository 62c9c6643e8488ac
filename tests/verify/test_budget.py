"""The terms of one GPU: which card they are estimated for, and which of them the pool differs by."""

from __future__ import annotations

from kvtool.catalog.gpus import find_gpu
from kvtool.units import GIB
from kvtool.verify.budget import card, kv_pool
from tests.verify.helpers import from_text, held, quoted, row


def test_the_memory_of_the_log_goes_before_the_catalogue_s() -> None:
    facts = quoted("vllm_0_31_llama_3_1_8b.log")
    a100 = find_gpu("a100-sxm-80gb")
    found = card(facts, a100)
    assert found is not None
    assert (found.name, found.memory_bytes) == (a100.name, round(79.25 * GIB))
    unnamed = card(facts, None)
    assert unnamed is not None
    assert unnamed.memory_bytes == round(79.25 * GIB)
    assert card(from_text("Available KV cache memory: 1.00 GiB"), None) is None


def test_the_pool_differs_by_the_term_that_is_furthest_off() -> None:
    document = held(quoted("vllm_0_6_llama_3_1_8b.log"), "llama-3.1-8b")
    assert "peak activation" in row(document, "KV cache pool").explanation


def test_no_card_no_estimate() -> None:
    document = held(quoted("vllm_qwen3_235b_tp4.log"), "qwen/qwen3-235b-a22b", tp=4)
    assert row(document, "KV cache pool").verdict == "unpredicted"
    assert "--gpu" in row(document, "KV cache pool").explanation
    named = held(quoted("vllm_qwen3_235b_tp4.log"), "qwen/qwen3-235b-a22b", "h200", tp=4)
    assert row(named, "KV cache pool").verdict == "estimate"


def test_eager_starts_capture_no_graphs() -> None:
    text = (
        "non-default args: {'model': 'meta-llama/Llama-3.1-8B', 'enforce_eager': True}\n"
        "Graph capturing finished in 1 secs, took 0.00 GiB"
    )
    assert row(held(from_text(text)), "CUDA graphs").predicted == 0


def test_the_rank_with_the_least_decides_and_bytes_go_before_rounded_gib() -> None:
    facts = from_text(
        "(Worker_TP0 pid=1) Available KV cache memory: 55.15 GiB\n"
        "(Worker_TP1 pid=2) Available KV cache memory: 55.10 GiB\n"
        "(Worker_TP0 pid=1) Current kv cache memory in use is 59212694937 bytes.\n"
    )
    pool = kv_pool(facts)
    assert pool is not None
    assert pool.value == 59_212_694_937
