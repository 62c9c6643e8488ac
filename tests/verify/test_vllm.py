"""vLLM's own numbers come out of the planner: real logs, posted in public (logs/SOURCES.md)."""

from __future__ import annotations

import pytest

from kvtool.units import GIB
from kvtool.verify.terms.vllm import implied_blocks
from tests.verify.helpers import CONFIGS, from_text, held, quoted, row, verdicts


def test_a_start_of_vllm_0_31_agrees_to_the_token() -> None:
    document = held(quoted("vllm_0_31_llama_3_1_8b.log"), "llama-3.1-8b")
    assert document.verdict == "agrees"
    blocks = row(document, "blocks")
    # 460,496 tokens are 28,781 blocks of 16; 56.21 GiB +- 0.005 are 28,776 to 28,782 blocks of 2 MiB.
    assert (blocks.logged, blocks.predicted_low, blocks.predicted_high) == (28_781, 28_776, 28_782)
    tokens = row(document, "tokens")
    assert (tokens.predicted, tokens.verdict) == (460_496, "equal")
    assert row(document, "max concurrency").verdict == "equal"
    assert row(document, "usable memory").verdict == "equal"
    assert abs(row(document, "weights").difference or 0) < 0.01 * 15 * GIB


def test_tokens_that_neither_the_pool_nor_the_concurrency_bears_out_are_what_is_off() -> None:
    text = (
        "Initializing a V1 LLM engine (v0.33.0) with config: model='meta-llama/Llama-3.1-8B', max_seq_len=32768\n"
        "Available KV cache memory: 53.20 GiB\nGPU KV cache size: {} tokens\n"
        "Maximum concurrency for 32,768 tokens per request: {}x\n"
    )
    assert held(from_text(text.format("435,808", "13.30")), None).verdict == "agrees"
    edited = verdicts(held(from_text(text.format("335,808", "13.30")), None))
    assert {term for term, verdict in edited.items() if verdict == "off"} == {"tokens", "tokens a GiB"}
    both = verdicts(held(from_text(text.format("335,808", "10.25")), None))
    assert {term for term, verdict in both.items() if verdict == "off"} == {"blocks", "tokens a GiB"}


def test_a_pool_to_the_byte_gives_the_exact_tokens() -> None:
    document = held(quoted("vllm_0_10_llava_mistral_7b.log"), "mistral-7b")
    assert document.verdict == "agrees"
    blocks = row(document, "blocks")
    assert blocks.logged == blocks.predicted_low == blocks.predicted_high == 59_212_694_937 // (2 << 20)
    assert row(document, "tokens").predicted == 451_744
    assert document.engine.version == "0.10.2"


@pytest.mark.parametrize("pool_tokens_concurrency", [("5.98", "567,978", "4.33"), ("6.01", "569,878", "4.35")])
def test_a_hybrid_start_agrees_under_the_kernels_that_it_ran_on(pool_tokens_concurrency: tuple[str, ...]) -> None:
    """noonghunna/club-3090#612 and #652: vLLM 0.24 had no FlashInfer delta net on that card, as an L40S has none."""
    pool, tokens, concurrency = pool_tokens_concurrency
    facts = from_text(
        f"INFO Available KV cache memory: {pool} GiB\nINFO GPU KV cache size: {tokens} tokens\n"
        f"INFO Maximum concurrency for 131,072 tokens per request: {concurrency}x\n"
        "non-default args: {'max_model_len': 131072, 'kv_cache_dtype': 'fp8', 'max_num_batched_tokens': 8192}"
    )
    config = str(CONFIGS / "qwen3.6-35b-a3b.json")
    document = held(facts, config, "l40s")
    assert document.verdict == "agrees"
    assert row(document, "tokens").predicted == int(tokens.replace(",", ""))
    unnamed = held(facts, config)
    assert unnamed.verdict == "off"
    off = [each.explanation for each in unnamed.rows if each.verdict == "off"]
    assert off
    assert all("the kernels of --gpu L40S-48GB" in text for text in off)


def test_a_block_size_that_vllm_logs() -> None:
    """vllm-project/vllm#42966: Qwen3.6-35B-A3B on 4 ranks has attention blocks of 528 tokens."""
    facts = from_text(
        "Setting attention block size to 528 tokens to ensure that attention page size is >= mamba page size."
    )
    document = held(facts, str(CONFIGS / "qwen3.6-35b-a3b.json"), "l40s", tp=4, kv_cache_memory_bytes=4 * GIB)
    assert row(document, "block size").verdict == "equal"


def test_blocks_of_the_engine_before_v1() -> None:
    document = held(quoted("vllm_0_6_llama_3_1_8b.log"), "llama-3.1-8b")
    assert document.verdict == "agrees"
    assert {term for term, verdict in verdicts(document).items() if verdict == "equal"} == {
        "bytes of a block",
        "blocks",
        "max concurrency",
    }
    assert row(document, "blocks").logged == 1952
    assert row(document, "bytes of a block").predicted == 2 << 20


def test_blocks_without_a_pool_are_not_predicted_from_themselves() -> None:
    document = held(quoted("vllm_0_7_llama_70b_w8a8.log"), "llama-3.1-70b")
    assert verdicts(document)["blocks"] == "unpredicted"
    assert verdicts(document)["max concurrency"] == "equal"
    assert "fewer bits" in row(document, "weights").explanation


def test_the_smallest_rank_decides_and_the_log_may_lack_it() -> None:
    document = held(quoted("vllm_qwen3_235b_tp4.log"), "qwen/qwen3-235b-a22b", tp=4)
    assert document.verdict == "agrees"
    assert row(document, "blocks").verdict == "bounded"
    assert "lacks the pool of 3 ranks" in row(document, "blocks").explanation
    alone = held(quoted("vllm_qwen3_235b_tp4.log"), "qwen/qwen3-235b-a22b", tp=1)
    assert alone.verdict == "off"


def test_more_blocks_than_the_pool_holds_are_off_on_any_number_of_ranks() -> None:
    facts = from_text("Available KV cache memory: 1.00 GiB\nGPU KV cache size: 178,880 tokens")
    assert held(facts, "qwen/qwen3-235b-a22b", tp=4).verdict == "off"


def test_the_flag_that_explains_a_difference_is_named() -> None:
    facts = from_text(
        "Available KV cache memory: 56.21 GiB\nGPU KV cache size: 921,008 tokens\n"
        "Maximum concurrency for 131,072 tokens per request: 7.03x"
    )
    document = held(facts, "llama-3.1-8b")
    assert document.verdict == "off"
    assert "--kv-cache-dtype fp8" in row(document, "blocks").explanation
    assert held(facts, "llama-3.1-8b", kv_cache_dtype="fp8").verdict == "agrees"


def test_a_request_of_windows_without_async_scheduling() -> None:
    """vllm-project/vllm#27508: gpt-oss-120b takes 4.54 GiB with 1,024 batched tokens and no step ahead."""
    document = held(quoted("vllm_gpt_oss_120b_refused.log"), "gpt-oss-120b", max_num_batched_tokens=1024)
    assert document.verdict == "refused"
    assert "--no-async-scheduling" in row(document, "one request").explanation
    again = held(
        quoted("vllm_gpt_oss_120b_refused.log"), "gpt-oss-120b", max_num_batched_tokens=1024, async_scheduling=False
    )
    assert row(again, "one request").verdict == "equal"


def test_the_longest_that_fits_is_the_one_vllm_estimates() -> None:
    """vllm-project/vllm#34076: each stage was held against the layers of both, so that pp 1 makes the same numbers."""
    document = held(quoted("vllm_0_15_qwen3_coder_30b_refused.log"), "qwen/qwen3-30b-a3b")
    assert verdicts(document) | {"one request": "equal", "estimated max len": "equal"} == verdicts(document)


def test_tokens_before_0_21_are_counted_by_groups() -> None:
    """vllm-project/vllm#40691: Qwen3.5-27B under 0.19 has 33.04 requests of 32,768 tokens, but 290,864 tokens."""
    text = (
        "Initializing a V1 LLM engine (v{0}) with config: model='m', max_seq_len=32768, x=1\n"
        "GPU KV cache size: {1} tokens\nMaximum concurrency for 32,768 tokens per request: 4.00x\n"
    )
    plan = held(from_text(text.format("0.33.0", "131,072")), "gpt-oss-120b", kv_cache_memory_bytes=16 * GIB)
    blocks = row(plan, "blocks").predicted
    assert blocks is not None
    old = held(
        from_text(text.format("0.19.0", f"{blocks // 2 * 16:,}")), "gpt-oss-120b", kv_cache_memory_bytes=16 * GIB
    )
    assert row(old, "tokens").verdict == "equal"
    assert "before 0.21" in row(old, "tokens").explanation


def test_a_flagged_pool_is_the_pool() -> None:
    facts = from_text(
        "non-default args: {'model': 'meta-llama/Llama-3.1-8B', 'kv_cache_memory_bytes': 2147483648}\n"
        "GPU KV cache size: 16,384 tokens, Maximum concurrency for 4,096 tokens per request: 4.00x"
    )
    document = held(facts)
    assert document.model == "meta-llama/Llama-3.1-8B"
    assert document.verdict == "agrees"
    assert row(document, "blocks").predicted == 1024


def test_metrics_tell_blocks_tokens_and_requests() -> None:
    facts = from_text(
        'vllm:cache_config_info{block_size="16",cache_dtype="auto",kv_cache_max_concurrency="4.0",'
        'kv_cache_size_tokens="16384",num_gpu_blocks="1024"} 1.0'
    )
    document = held(facts, "llama-3.1-8b", max_model_len=4096)
    assert verdicts(document)["tokens"] == verdicts(document)["max concurrency"] == "equal"
    off = held(facts, "llama-3.1-8b", max_model_len=8192)
    assert off.verdict == "off"


@pytest.mark.parametrize(
    ("tokens", "blocks_per_request", "max_model_len", "blocks"),
    [(460_496, 8192, 131_072, 28_781), (567_978, 69, 131_072, 299), (567_979, 69, 131_072, None), (1, None, 1, None)],
)
def test_tokens_come_from_one_number_of_blocks_or_none(
    tokens: int, blocks_per_request: int | None, max_model_len: int, blocks: int | None
) -> None:
    assert implied_blocks(tokens, blocks_per_request, max_model_len) == blocks


def test_what_no_plan_follows_is_said() -> None:
    facts = from_text(
        "non-default args: {'model': 'm', 'speculative_config': {'method': 'mtp'}, 'max_model_len': 131072}\n"
        "Available KV cache memory: 56.21 GiB\nGPU KV cache size: 400,000 tokens"
    )
    document = held(facts, "llama-3.1-8b")
    assert document.verdict == "off"
    assert "draft model" in row(document, "blocks").explanation
    assert any("draft model" in text for text in document.assumptions)


@pytest.mark.parametrize(
    "config",
    [
        "{'method': 'mtp', 'num_speculative_tokens': 2}",
        "SpeculativeConfig(method='mtp', model='m', num_spec_tokens=2)",
    ],
)
def test_drafted_tokens_of_the_log_are_an_input_that_the_plan_says_it_leaves_out(config: str) -> None:
    facts = from_text(
        "non-default args: {'model': 'm', 'max_model_len': 131072}\n"
        f"Initializing a V1 LLM engine (v0.33.0) with config: model='m', speculative_config={config}, tp=1\n"
        "Available KV cache memory: 56.21 GiB\nGPU KV cache size: 400,000 tokens"
    )
    document = held(facts, "llama-3.1-8b")
    assert document.inputs["num_speculative_tokens"] == 2
    assert "not planned: the draft model of speculative_config adds layers to the cache" in document.assumptions
