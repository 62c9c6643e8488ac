"""The caches that llama.cpp, Ollama, TensorRT-LLM and LMDeploy log, beside those of the model."""

from __future__ import annotations

import pytest

from kvtool.system.errors import KvtoolError
from kvtool.units import MIB
from tests.verify.helpers import from_text, held, quoted, row, verdicts


def test_windows_of_llama_cpp_hold_all_sequences_and_a_batch() -> None:
    """gemma-2-2b at 8,192 with 4 slots: 13 layers of 4 heads of 256 in f16 for all, and 13 windows as many cells."""
    document = held(quoted("llama_cpp_gemma_2_2b.log"), "gemma-2-2b")
    assert row(document, "SWA K size").predicted == 208 * MIB == 13 * 8_192 * 4 * 256 * 2
    assert held(quoted("llama_cpp_gemma_2_2b.log"), "gemma-2-2b", kv_cache_dtype="q8_0").verdict == "off"


def test_fewer_slots_make_smaller_windows() -> None:
    log = (
        "llama_context: n_seq_max     = 1\nllama_context: n_ctx         = 16384\nllama_context: n_ubatch      = 512\n"
        "llama_kv_cache: size =  832.00 MiB ( 16384 cells,  13 layers,  1/1 seqs), K (f16):  416.00 MiB, "
        "V (f16):  416.00 MiB\n"
        "llama_kv_cache: size =  {} MiB ({} cells,  13 layers,  1/1 seqs), K (f16):  {} MiB, V (f16):  {} MiB"
    )
    # 4,096 + 512 cells of 26,624 B of K and as many of V
    assert held(from_text(log.format("234.00", "4608", "117.00", "117.00")), "gemma-2-2b").verdict == "agrees"
    wrong = held(from_text(log.format("208.00", "4096", "104.00", "104.00")), "gemma-2-2b")
    assert verdicts(wrong)["SWA KV cells"] == "off"


def test_the_line_of_before_mid_2025() -> None:
    """Llama-3.2-3B: 28 layers of 8 heads of 128; 4,096 cells in f16 take 224 MiB of K, in q8_0 34 B for 32."""
    size = "llama_kv_cache_unified: kv_size = 4096, type_k = '{0}'\n{1}KV self size  =  {2} MiB, K ({0}):  {3} MiB, "
    plain = size.format("f16", "llama_kv_cache_unified: ", "448.00", "224.00") + "V (f16):  224.00 MiB"
    assert held(from_text(plain), "llama-3.2-3b").verdict == "agrees"
    quantised = size.format("q8_0", "llama_context: ", "238.00", "119.00") + "V (q8_0):  119.00 MiB"
    assert held(from_text(quantised), "llama-3.2-3b").verdict == "agrees"
    assert held(from_text(plain.replace("224", "225")), "llama-3.2-3b").verdict == "off"


def test_a_gguf_of_before_latents_keeps_its_heads() -> None:
    """DeepSeek-V2-Lite, 8 x 2,048 cells: 27 layers of 16 heads of 192 (K) and 128 (V), or one latent of 576."""
    size = "llama_kv_cache: size = {} MiB (  2048 cells,  27 layers,  8/8 seqs), K (f16): {} MiB, V (f16): {} MiB"
    heads = held(from_text(size.format("4320.00", "2592.00", "1728.00")), "deepseek-v2-lite")
    assert heads.verdict == "agrees"
    assert any("attn_k_b" in text for text in heads.assumptions)
    latents = held(from_text(size.format("486.00", "486.00", "0.00")), "deepseek-v2-lite")
    assert latents.verdict == "agrees"
    assert held(from_text(size.format("4320.00", "2160.00", "2160.00")), "deepseek-v2-lite").verdict == "off"


def test_states_of_a_hybrid_in_llama_cpp() -> None:
    """Qwen3.5-9B: 24 layers of delta nets with 8,192 channels of convolution and 32 states of 128 x 128, in fp32."""
    conv, states = 24 * 8_192 * 3 * 4 / MIB, 24 * 32 * 128 * 128 * 4 / MIB
    facts = from_text(
        "llama_context: n_seq_max     = 1\nllama_context: n_ctx         = 4096\n"
        f"llama_memory_recurrent: size = {conv + states:.2f} MiB ( 1 cells,  32 layers,  1 seqs  0 rs_seq), "
        f"R (f32): {conv:.2f} MiB, S (f32): {states:.2f} MiB"
    )
    document = held(facts, "qwen3.5-9b")
    assert verdicts(document)["convolution state"] == verdicts(document)["recurrent state"] == "equal"


OLLAMA = (
    'time=2025-10-20 level=INFO source=routes.go:1525 msg="Listening on [::]:11434 (version {})"\n'
    'time=2025-10-20 level=INFO source=runner.go:1205 msg=load request="{{Operation:commit Parallel:1 BatchSize:512 '
    'FlashAttention:false KvSize:2048 KvCacheType: NumThreads:8}}"\n'
)


def test_ollama_s_caches_over_its_devices() -> None:
    """gemma3-12b at 2,048: 608 MiB = 8 layers x 2,048 cells and 40 x 1,536, of 8,192 B; by its own engine."""
    one = 'level=INFO source=device.go:245 msg="kv cache" device=CUDA{} size="{} MiB"\n'
    document = held(from_text(OLLAMA.format("0.12.6") + one.format(0, "608.0")), "gemma-3-12b")
    assert document.verdict == "agrees"
    assert document.engine.name == "ollama"
    split = one.format(0, "300.0") + one.format(0, "304.0") + one.format(1, "304.0")
    assert held(from_text(OLLAMA.format("0.12.6") + split), "gemma-3-12b").verdict == "agrees"
    whole = held(from_text(OLLAMA.format("0.5.7") + one.format(0, "608.0")), "gemma-3-12b")
    assert whole.verdict == "off"  # before 0.6.3 windows kept every token


def test_ollama_s_estimate_before_loading_is_one() -> None:
    """Llama-3.2-3B, four slots of 2,048: 8,192 cells of 114,688 B."""
    facts = from_text(
        'msg="offload to cuda" layers.requested=-1 memory.required.kv="896.0 MiB" memory.required.full="3.7 GiB"\n'
        'msg="starting llama server" cmd="ollama_llama_server runner --model m --ctx-size 8192 --parallel 4 --port 1"'
    )
    document = held(facts, "llama-3.2-3b")
    assert row(document, "KV cache, before loading").predicted == 896 * MIB


def test_a_llama_cpp_log_without_cells_is_not_compared() -> None:
    document = held(from_text("llama_context: n_ubatch      = 512"), "llama-3.2-3b")
    assert document.verdict == "uncompared"
    assert "does not say how many cells" in document.assumptions[-1]


def test_the_dtype_of_tensorrt_llm_follows_from_its_bytes_or_is_given() -> None:
    facts = quoted("tensorrt_llm_llama_3_1_8b_fp8.log")
    document = held(facts, "llama-3.1-8b")
    assert row(document, "tokens").predicted == 8_219 * 32
    assert row(document, "KV cache pool").predicted == 263_008 * 65_536
    assert any("a cache in fp8" in text for text in document.assumptions)
    assert held(facts, "llama-3.1-8b", kv_cache_dtype="bf16").verdict == "off"


def test_bytes_of_an_older_tensorrt_llm() -> None:
    """NVIDIA/TensorRT-LLM#1400: 132,608 tokens in 69,524,783,104 B, 524,288 each: 32 layers of 32 heads of 128."""
    facts = from_text(
        "[TensorRT-LLM][INFO] Allocate 69524783104 bytes for k/v cache. \n"
        "[TensorRT-LLM][INFO] Using 132608 tokens in paged KV cache."
    )
    document = held(facts, "llama-2-7b")
    assert document.verdict == "agrees"
    assert row(document, "KV cache pool").predicted == 69_524_783_104


LMDEPLOY = "[TM][INFO] [BlockManager] block_size = {} MB\n[TM][INFO] [BlockManager] max_block_count = 159\n"


def test_blocks_of_lmdeploy() -> None:
    """32 layers of 32 heads of 128 in fp16 are 64 MiB for 128 tokens; whole MiB are logged."""
    assert held(from_text(LMDEPLOY.format(64)), "llama-2-7b").verdict == "agrees"
    assert held(from_text(LMDEPLOY.format(32)), "llama-2-7b").verdict == "agrees"  # 64 tokens, the default
    assert held(from_text(LMDEPLOY.format(48)), "llama-2-7b").verdict == "off"
    config = "TurbomindEngineConfig(model_name='x', tp=1, cache_block_seq_len=64, quant_policy={})\n"
    # 64 tokens x 2,048 heads of K and V x (128 + 4) B = 16.5 MiB
    assert held(from_text(config.format(8) + LMDEPLOY.format(16)), "llama-2-7b").verdict == "agrees"
    assert held(from_text(config.format(0) + LMDEPLOY.format(16)), "llama-2-7b").verdict == "off"
    with pytest.raises(KvtoolError, match="quant_policy 5"):
        held(from_text(config.format(5) + LMDEPLOY.format(16)), "llama-2-7b")


def test_states_that_no_plan_of_an_engine_covers_are_not_compared() -> None:
    for model in ("qwen3.5-9b", "gpt-oss-120b"):
        document = held(quoted("tensorrt_llm_llama_3_1_8b_fp8.log"), model)
        assert document.verdict == "uncompared"
        assert any("not planned" in text for text in document.assumptions)
