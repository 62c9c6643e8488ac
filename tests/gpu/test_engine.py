"""The engine on a GPU says what it says on a CPU: Triton kernels against torch's, the same weights, greedy."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch

from kvtool.catalog.resolve import resolve_model
from kvtool.engine.config import EngineConfig
from kvtool.engine.decoder.transformer import Transformer
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.sequence import Sequence
from tests.engine.running import engine_of, generate, prompt
from tests.engine.tiny import MAX_POSITIONS, Reference, save_tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

PROMPTS = [prompt(1), prompt(17), prompt(80)]
MAX_TOKENS = 24
FAMILIES = (
    "llama-3-gqa",
    "llama-wide-heads",
    "mistral-window",
    "qwen3",
    "mixtral",
    "deepseek-v2-lite",
    "deepseek-v3-yarn",
)
LOGIT_TOLERANCE = 2e-4  # fp32, exact products: the order of the sums is all that differs

Tiny = Callable[[str], Reference]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return cache(lambda name: save_tiny(name, tmp_path_factory.mktemp(name)))


def run(reference: Reference, device: str, backend: str, **config: object) -> list[Sequence]:
    settings = EngineConfig(weights=str(reference.folder), dtype="fp32", device=device, backend=backend, **config)
    loaded = LoadedModel(resolve_model(str(reference.folder)), settings, max_positions=MAX_POSITIONS)
    return generate(engine_of(loaded), PROMPTS, MAX_TOKENS)


@pytest.mark.parametrize("block_size", [16, 64])
@pytest.mark.parametrize("name", FAMILIES)
def test_triton_says_what_the_cpu_says(tiny: Tiny, name: str, block_size: int) -> None:
    reference = tiny(name)
    on_cpu = run(reference, "cpu", "torch", block_size=block_size)
    on_gpu = run(reference, "cuda", "triton", block_size=block_size)
    assert [s.output_ids for s in on_gpu] == [s.output_ids for s in on_cpu]
    for one, other in zip(on_gpu, on_cpu, strict=True):
        difference = (torch.stack(one.logits).cpu() - torch.stack(other.logits)).abs().max()
        assert float(difference) < LOGIT_TOLERANCE


def test_torch_on_the_gpu_says_so_too(tiny: Tiny) -> None:
    reference = tiny("qwen3")
    on_cpu, on_gpu = (run(reference, device, "torch") for device in ("cpu", "cuda"))
    assert [s.output_ids for s in on_gpu] == [s.output_ids for s in on_cpu]


def test_chunks_of_a_prompt_change_nothing(tiny: Tiny) -> None:
    """Chunked prefill reads earlier chunks from pages, between decode steps of the others."""
    reference = tiny("llama-3-gqa")
    whole, chunked = (run(reference, "cuda", "triton", max_num_batched_tokens=tokens) for tokens in (8192, 32))
    assert [s.output_ids for s in chunked] == [s.output_ids for s in whole]


@pytest.mark.parametrize("kv_cache_dtype", ["fp32", "fp8"])
def test_bf16_runs_with_every_cache(tiny: Tiny, kv_cache_dtype: str) -> None:
    reference = tiny("llama-3-gqa")
    settings = EngineConfig(
        weights=str(reference.folder), dtype="bf16", kv_cache_dtype=kv_cache_dtype, device="cuda", backend="triton"
    )
    loaded = LoadedModel(resolve_model(str(reference.folder)), settings, max_positions=MAX_POSITIONS)
    sequences = generate(engine_of(loaded), PROMPTS, MAX_TOKENS)
    assert [len(s.output_ids) for s in sequences] == [MAX_TOKENS] * len(PROMPTS)
    assert all(torch.isfinite(torch.stack(s.logits)).all() for s in sequences)


def test_mla_waits_for_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts and decode steps of a layer without experts: what the host needs to know, it has in its lists."""
    reference = tiny("deepseek-v2-lite")
    once = run(reference, "cuda", "triton", num_layers=1, graphs=False)  # compiles
    forward = Transformer.__call__

    def guarded(*args: object, **more: object) -> torch.Tensor:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return forward(*args, **more)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Transformer, "__call__", guarded)
    again = run(reference, "cuda", "triton", num_layers=1, graphs=False)
    assert [s.output_ids for s in again] == [s.output_ids for s in once]
