"""The engine on Triton kernels, in Triton's interpreter: what it says equals what transformers says, as on torch.

The interpreter is chosen when triton is imported, so the models run in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kvtool.kernels import load_kernels
from kvtool.kernels.packed.pages import packed
from tests.engine.conftest import SaveTiny
from tests.engine.running import as_it_is, engine_of, generate, largest_difference, load, prompt, use
from tests.kernels.test_interpreter import QUIET, REFUSED

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.skipif(INTERPRETED or REFUSED, reason="the interpreter of triton 3.6 needs numpy < 2.4")
@pytest.mark.parametrize("chosen", ["tokens_and_logits", "graphs"])
def test_in_the_interpreter(chosen: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", QUIET, __file__, "-k", chosen]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout


@pytest.mark.skipif(not INTERPRETED, reason="runs inside the test above")
@pytest.mark.parametrize("name", [
    *("llama-3-gqa", "qwen3", "mistral-window", "deepseek-v2-lite", "gemma2", "gpt-oss", "phi3-longrope", "olmo2"),
    *("smollm3", "gpt2"),
])  # fmt: skip
def test_tokens_and_logits_are_those_of_torch(tiny: SaveTiny, name: str) -> None:
    """A prompt in two chunks, then decode beside another's prefill: each kind of attention, of norm and of MLP."""
    reference = tiny(name)
    loaded = load(reference.folder, max_num_batched_tokens=16)
    prompts = [prompt(21), prompt(3)]
    on_torch = generate(engine_of(loaded), prompts, 2)
    use(loaded, load_kernels("triton"))
    on_triton = generate(engine_of(loaded), prompts, 2)
    assert [s.output_ids for s in on_triton] == [s.output_ids for s in on_torch]
    assert max(largest_difference(reference, sequence) for sequence in on_triton) < 2e-4


@pytest.mark.skipif(not INTERPRETED, reason="runs inside the test above")
def test_tokens_and_logits_of_packed_pages_are_those_of_torch(tiny: SaveTiny) -> None:
    """In chunks and beside another; the same codes are read where they lie, and unpacked for a prefill."""
    loaded = load(tiny("llama-wide-heads").folder, max_num_batched_tokens=16, kv_cache_dtype="q5_1/int4+hadamard")
    prompts = [prompt(21), prompt(3)]
    on_torch = generate(engine_of(loaded), prompts, 3)
    use(loaded, packed(load_kernels("triton")))
    on_triton = generate(engine_of(loaded), prompts, 3)
    assert [s.output_ids for s in on_triton] == [s.output_ids for s in on_torch]
    assert (
        max(
            float((a - b).abs().max())
            for one in zip(on_torch, on_triton, strict=True)
            for a, b in zip(*(s.logits for s in one), strict=True)
        )
        < 0.1
    )


@pytest.mark.skipif(not INTERPRETED, reason="runs inside the test above")
@pytest.mark.parametrize("name", ["qwen3", "deepseek-v2-lite", "gpt2"])
def test_the_step_that_graphs_record_says_so_too(tiny: SaveTiny, name: str) -> None:
    """Rows that stay in place on the device, padding among them, and tables as wide as the longest sequence."""
    reference = tiny(name)
    loaded = load(reference.folder)
    prompts = [prompt(17), prompt(3), prompt(5)]
    on_torch = generate(engine_of(loaded), prompts, 3)
    use(loaded, load_kernels("triton"))
    engine = engine_of(loaded, capture=as_it_is)
    on_triton = generate(engine, prompts, 3)
    assert engine.pipeline is not None
    assert engine.pipeline.num_launched == 2
    assert [s.output_ids for s in on_triton] == [s.output_ids for s in on_torch]
    assert max(largest_difference(reference, sequence) for sequence in on_triton) < 2e-4
