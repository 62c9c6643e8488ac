"""SGLang's own pools come out of the planner: real logs, posted in public (logs/SOURCES.md)."""

from __future__ import annotations

from kvtool.units import GIB
from kvtool.verify.terms.sglang import logged_pools
from tests.verify.helpers import CONFIGS, from_text, held, quoted, row, verdicts


def test_keys_and_values_of_grouped_attention() -> None:
    document = held(quoted("sglang_0_4_llama_3_1_8b.log"), "llama-3.1-8b")
    assert document.verdict == "agrees"
    assert row(document, "K size").predicted == (38_141 + 1) * 32 * 8 * 128 * 2
    assert verdicts(document)["K size"] == verdicts(document)["V size"] == "equal"
    assert row(document, "tokens").verdict == "unpredicted"
    assert "--mem-fraction-static" in row(document, "tokens").explanation


def test_a_wrong_degree_is_off() -> None:
    facts = quoted("sglang_qwen3_235b_tp4.log")
    assert held(facts, "qwen/qwen3-235b-a22b", tp=4).verdict == "agrees"
    assert held(facts, "qwen/qwen3-235b-a22b", tp=2).verdict == "off"


def test_both_pools_of_windows_and_the_split_between_them() -> None:
    """gpt-oss-120b, 36 layers of 8 KV heads of 64, every other one sliding: as SGLang's own code would log it."""
    full, swa, token = 400_000, 320_000, 18 * 8 * 64 * 2
    facts = from_text(
        f"[2026-02-01 10:00:00 TP0] Use sliding window memory pool. full_layer_tokens={full}, swa_layer_tokens={swa}\n"
        f"[2026-02-01 10:00:00 TP0] KV Cache is allocated. #tokens: {swa}, K size: {(swa + 1) * token / GIB:.2f} GB, "
        f"V size: {(swa + 1) * token / GIB:.2f} GB\n"
        f"[2026-02-01 10:00:00 TP0] KV Cache is allocated. #tokens: {full}, K size: {(full + 1) * token / GIB:.2f} GB, "
        f"V size: {(full + 1) * token / GIB:.2f} GB\n"
    )
    assert len(logged_pools(facts)) == 2
    document = held(facts, "gpt-oss-120b", max_model_len=131_072)
    found = verdicts(document)
    assert found["K size"] == found["window V size"] == found["full tokens"] == found["window tokens"] == "equal"
    skewed = held(from_text(facts_with(full, swa // 2)), "gpt-oss-120b", max_model_len=131_072)
    assert verdicts(skewed)["window tokens"] == "off"


def facts_with(full: int, swa: int) -> str:
    return f"Use sliding window memory pool. full_layer_tokens={full}, swa_layer_tokens={swa}"


def test_state_slots_of_a_hybrid() -> None:
    """Qwen3.6-35B-A3B: 30 layers of 32 heads of 128 x 128 in fp32, and 3 inputs of 8,192 channels in bf16, a slot."""
    slots = 97
    conv, ssm = (slots + 1) * 30 * 8192 * 3 * 2, (slots + 1) * 30 * 32 * 128 * 128 * 4
    facts = from_text(
        f"[2026-08-26 14:45:31 TP0] Mamba Cache is allocated. max_mamba_cache_size: {slots}, "
        f"conv_state size: {conv / GIB:.2f}GB, ssm_state size: {ssm / GIB:.2f}GB \n"
    )
    document = held(facts, str(CONFIGS / "qwen3.6-35b-a3b.json"))
    assert document.verdict == "agrees"
    assert row(document, "recurrent state").predicted == ssm
    bf16 = held(facts, str(CONFIGS / "qwen3.6-35b-a3b.json"), mamba_ssm_cache_dtype="bf16")
    assert verdicts(bf16)["recurrent state"] == "off"


def test_tokens_follow_from_free_memory_where_the_log_has_it() -> None:
    facts = from_text(
        "server_args=ServerArgs(model_path='meta-llama/Llama-3.1-8B', tp_size=1, mem_fraction_static=0.8)\n"
        "Load weight begin. avail mem=78.00 GB\n"
        "Load weight end. elapsed=5 s, type=LlamaForCausalLM, avail mem=63.00 GB, mem usage=15.00 GB.\n"
        "max_total_num_tokens=388000, chunked_prefill_size=8192, context_len=131072, available_gpu_mem=10.00 GB\n"
    )
    document = held(facts)
    tokens = row(document, "tokens")
    # 63 - 0.2 x 78 GiB for rows of 131,072 B
    assert tokens.predicted is not None
    assert abs(tokens.predicted - 47.4 * GIB / 131_072) < 2
    assert tokens.verdict == "estimate"
    assert document.inputs["mem_fraction_static"] == 0.8


def test_ranks_that_repeat_a_pool_count_once() -> None:
    facts = quoted("sglang_mimo_v2_flash_tp4.log")
    assert len(logged_pools(facts)) == 1


def test_dp_attention_divides_the_ranks() -> None:
    facts = from_text(
        "server_args=ServerArgs(model_path='m', tp_size=8, dp_size=8, enable_dp_attention=True, page_size=64, "
        "context_length=None, disable_radix_cache=True, kv_cache_dtype='auto')\n"
        "max_total_num_tokens=100000, context_len=8192, "
    )
    document = held(facts, "llama-3.1-8b")
    assert document.inputs == {
        "tp": 8,
        "dp": 8,
        "dp_attention": True,
        "block_size": 64,
        "kv_cache_dtype": "auto",
        "max_model_len": 8192,
        "enable_prefix_caching": False,
    }
