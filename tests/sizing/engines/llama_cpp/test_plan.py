"""llama.cpp's caches to the MiB, against lines of public logs and against its own code's arithmetic done by hand."""

from __future__ import annotations

import pytest

from kvtool.catalog.models_yaml import load_catalogue
from kvtool.sizing.engines.llama_cpp import LlamaCppFlags, capacity, llama_cpp_start, ollama_start, plan, size_engine
from kvtool.sizing.engines.llama_cpp.plan import LlamaCppPlan, device_of
from kvtool.system.errors import KvtoolError
from kvtool.units import MIB

GEMMA_2_2B_LOG = (
    "llama_kv_cache: size =  416.00 MiB (  8192 cells,  13 layers,  4/1 seqs), "
    "K (f16):  208.00 MiB, V (f16):  208.00 MiB"
)


def planned(name: str, context: int, flags: LlamaCppFlags | None = None) -> LlamaCppPlan:
    flags = flags or LlamaCppFlags()
    return plan(load_catalogue().get(name), flags, llama_cpp_start(flags, context))


def ollama(name: str, context: int, version: tuple[int, ...] | None = None, **flags: int) -> LlamaCppPlan:
    given = LlamaCppFlags(**flags)  # type: ignore[arg-type]
    return plan(load_catalogue().get(name), given, ollama_start(given, context, version))


def test_gemma_2_with_four_slots_on_one_cache_as_its_log_has_it() -> None:
    """A public log: 4 slots, n_ctx 8192, unified: the windows of 4 x 4096 do not fit, so both kinds have 8192 cells."""
    found = planned("gemma-2-2b", 8192)
    assert found.total_bytes == 832 * MIB
    engine = size_engine(found, name="llama.cpp")
    assert engine.log_line == f"{GEMMA_2_2B_LOG}\n{GEMMA_2_2B_LOG}"
    assert engine.bytes_needed == 832 * MIB


def test_gemma_4_12b_in_q8_0() -> None:
    """A public log of llama-server: 4 slots at 8,192: 68 MiB for all tokens, 765 for 4,608 cells of windows."""
    found = planned("gemma-4-12b", 8192, LlamaCppFlags(cache_type_k="q8_0", cache_type_v="q8_0"))
    assert [cache.total_bytes for cache in found.caches] == [68 * MIB, 765 * MIB]


@pytest.mark.parametrize("version", [None, (0, 12, 0)])
def test_gemma_3_in_ollama(version: tuple[int, ...] | None) -> None:
    """Ollama's own line for gemma3-12b at 2,048: 608 MiB = 8 x 2,048 + 40 x 1,536 cells of 8 KiB."""
    found = ollama("gemma-3-12b-it", 2048, version)
    assert [(cache.rows, len(cache.layers)) for cache in found.caches] == [(2048, 8), (1536, 40)]
    assert found.total_bytes == 608 * MIB


def test_ollama_before_0_6_3_kept_windows_whole() -> None:
    """gemma3:27b at 2,048: 992 MiB = 62 x 2,048 cells of 8 KiB."""
    assert ollama("gemma-3-27b-it", 2048, (0, 6, 0)).total_bytes == 992 * MIB


def test_ollamas_own_engine_keeps_one_batch_for_all_windows() -> None:
    """causal.go: cells = sequences x (window + 1) + batch, padded to 256: 4 x 1,025 + 512 -> 4,864."""
    found = ollama("gemma-3-12b-it", 8192, (0, 20), parallel=4)
    assert [cache.rows for cache in found.caches] == [4 * 8192, 4864]
    assert found.start.context == 8192


def test_parallel_slots_have_streams_of_their_own() -> None:
    """-np 3 -c 8192: n_ctx_seq = pad(8192 / 3, 256) = 2816, three times."""
    found = planned("llama-3.1-8b", 8192, LlamaCppFlags(parallel=3))
    assert (found.start.cells, found.start.streams) == (2816, 3)
    assert found.total_bytes == 3 * 2816 * 32 * 2 * 8 * 128 * 2
    assert capacity(found, 2816) == 3
    assert capacity(found, 2817) == 0


def test_slots_that_share_a_cache_take_what_is_there() -> None:
    found = planned("llama-3.1-8b", 8192)
    assert capacity(found, 8192) == 1
    assert capacity(found, 1024) == 4  # no more than slots


def test_keys_and_values_in_types_of_their_own() -> None:
    """A block of 32 takes 34 bytes in q8_0 and 18 in q4_0 (ggml)."""
    found = planned("llama-3.1-8b", 4096, LlamaCppFlags(cache_type_k="q8_0", cache_type_v="q4_0"))
    (cache,) = found.caches
    assert cache.k_bytes == 4096 * 32 * 8 * 128 // 32 * 34
    assert cache.v_bytes == 4096 * 32 * 8 * 128 // 32 * 18


def test_mla_keeps_one_row_and_no_values() -> None:
    """DeepSeek-V3: 512 + 64 elements a layer, and nothing of the draft layer."""
    (cache,) = planned("deepseek-v3", 4096).caches
    assert (cache.k_bytes, cache.v_bytes) == (4096 * 61 * 576 * 2, 0)
    assert len(cache.layers) == 61


def test_an_indexer_has_a_cache_of_its_own() -> None:
    """DeepSeek-V3.2 (llama-kv-cache-dsa.cpp): one key of 128 elements a layer, in K's type."""
    _, indexer = planned("deepseek-v3.2", 4096).caches
    assert (indexer.k_bytes, indexer.v_bytes) == (4096 * 61 * 128 * 2, 0)


def test_states_are_fp32_and_one_for_each_slot() -> None:
    """Qwen3-Next: 36 layers of 3 x 8,192 convolution inputs and 32 x 128 x 128 elements; 12 layers keep cells."""
    cells, states = planned("qwen3-next-80b-a3b-instruct", 4096).caches
    assert len(cells.layers) == 12
    assert (states.rows, len(states.layers)) == (4, 36)
    assert states.k_bytes == 4 * 36 * 3 * 8192 * 4
    assert states.v_bytes == 4 * 36 * 32 * 128 * 128 * 4


def test_windows_that_llama_cpp_does_not_know_keep_every_token() -> None:
    (cache,) = planned("mistral-7b-v0.1", 32768).caches
    assert cache.rows == 32768
    whole = planned("gemma-3-12b-it", 8192, LlamaCppFlags(parallel=1, swa_full=True))
    assert {cache.rows for cache in whole.caches} == {8192}


def test_without_flash_attention_values_are_as_wide_as_the_widest() -> None:
    """Gemma 4 26B: full layers of 2 x 512, sliding ones of 8 x 256: V is padded to 2,048 everywhere."""
    off = planned("gemma-4-26b-a4b-it", 4096, LlamaCppFlags(parallel=1, flash_attn="off"))
    assert {layer.v_bytes for cache in off.caches for layer in cache.layers} == {2048 * 2}
    with_it = planned("gemma-4-26b-a4b-it", 4096, LlamaCppFlags(parallel=1))
    assert {layer.v_bytes for cache in with_it.caches for layer in cache.layers} == {1024 * 2, 2048 * 2}


def test_layers_are_dealt_out_to_the_gpus() -> None:
    """llama-model.cpp: the last n layers and the output; layer i of them to the GPU in whose share i / n falls."""
    flags = LlamaCppFlags(n_gpu_layers=25, tensor_split=(3.0, 1.0))
    devices = [device_of(layer, 32, flags) for layer in range(32)]
    assert devices == [None] * 8 + [0] * 19 + [1] * 5
    assert [device_of(layer, 32, LlamaCppFlags(n_gpu_layers=0)) for layer in (0, 31)] == [None, None]
    found = planned("llama-3.1-8b", 4096, flags)
    per_layer = 4096 * 2 * 8 * 128 * 2
    assert [found.bytes_on(gpu) for gpu in (None, 0, 1)] == [8 * per_layer, 19 * per_layer, 5 * per_layer]


def test_what_llama_cpp_refuses() -> None:
    off = LlamaCppFlags(cache_type_v="q8_0", flash_attn="off")
    assert "quantized V cache requires flash_attn" in str(planned("llama-3.1-8b", 4096, off).refusal)
    mixed = LlamaCppFlags(cache_type_k="q8_0")
    assert "must be the same" in str(planned("deepseek-v3", 4096, mixed).refusal)
    assert "is not modelled" in str(planned("deepseek-v4-flash", 4096).refusal)
    with pytest.raises(KvtoolError, match=r"--cache-type-k 'fp8' is not one of llama.cpp's: f32, f16"):
        planned("llama-3.1-8b", 4096, LlamaCppFlags(cache_type_k="fp8"))
