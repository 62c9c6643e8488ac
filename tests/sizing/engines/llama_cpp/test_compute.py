"""What llama.cpp reserves to compute in: "CUDA0 compute buffer size" of public logs, which the estimate meets."""

from __future__ import annotations

import pytest

from kvtool.catalog.resolve import inline_model, resolve_model
from kvtool.sizing.engines.llama_cpp import LlamaCppFlags, llama_cpp_start, plan
from kvtool.sizing.engines.llama_cpp.compute import compute_bytes
from kvtool.units import MIB

LLAMA, HYBRID = resolve_model("llama-3.1-8b"), resolve_model("qwen3.5-9b")
# 30 layers whose K and V take 180 MiB at 512 tokens, and the vocabulary of GPT-NeoX.
TRILM = inline_model(layers=30, heads=24, kv_heads=24, head_dim=128, intermediate_size=9216, vocab_size=50688)
OFF, Q8 = LlamaCppFlags(flash_attn="off"), LlamaCppFlags(cache_type_k="q8_0", cache_type_v="q8_0", flash_attn="on")


@pytest.mark.parametrize(
    ("model", "flags", "context", "mib"),
    [
        (LLAMA, OFF, 512, 258.50),  # logits, and a hidden state
        (LLAMA, OFF, 8192, 560.00),  # scores of 32 heads over 8,192 cells: three logs of Ollama and llama.cpp
        (TRILM, OFF, 512, 105.00),  # mozilla-ai/llamafile#552
        (HYBRID, Q8, 262144, 808.02),  # the mask of 262,144 cells in fp32 and fp16
    ],
)
def test_logged_compute_buffers(model: object, flags: LlamaCppFlags, context: int, mib: float) -> None:
    found = compute_bytes(plan(model, flags, llama_cpp_start(flags, context)))  # type: ignore[arg-type]
    assert found / MIB == pytest.approx(mib, abs=0.03)


def test_it_grows_with_the_batch() -> None:
    flags = LlamaCppFlags(ubatch=2048)
    small, large = (compute_bytes(plan(LLAMA, one, llama_cpp_start(one, 4096))) for one in (LlamaCppFlags(), flags))
    assert large == 4 * small
