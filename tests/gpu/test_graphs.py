"""Decode steps as CUDA graphs give what the same kernels give when they are launched one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from kvtool.bench.harness import cold_start_of
from kvtool.catalog.resolve import resolve_model
from kvtool.engine.config import EngineConfig
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.sequence import SamplingParams, Sequence
from tests.engine.running import engine_of, generate, prompt
from tests.engine.tiny import MAX_POSITIONS, Reference, save_tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

PROMPTS = [prompt(1), prompt(17), prompt(80), prompt(31), prompt(5)]
LOGIT_TOLERANCE = 2e-4  # fp32: wider tables split attention at other places, so sums are ordered otherwise
MODELS = ("llama-3-gqa", "llama-wide-heads", "mistral-window", "qwen3", "gemma2", "gemma3", "phi3-longrope", "gpt2")
DRAWS = {
    "all": SamplingParams(max_tokens=24, temperature=1.3),
    "nucleus": SamplingParams(max_tokens=24, temperature=1.3, top_p=0.8),
}

Tiny = Callable[[str], Reference]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return cache(lambda name: save_tiny(name, tmp_path_factory.mktemp(name)))


def load(reference: Reference, **config: object) -> LoadedModel:
    settings = EngineConfig(
        **{"weights": str(reference.folder), "dtype": "fp32", "device": "cuda", "backend": "triton", **config}
    )
    return LoadedModel(resolve_model(str(reference.folder)), settings, max_positions=MAX_POSITIONS)


def run(engine: Engine, params: SamplingParams, count: int) -> list[Sequence]:
    sequences = [engine.add(prompt_ids, params) for prompt_ids in PROMPTS[:count]]
    list(engine.run_until_idle())
    return sequences


@pytest.mark.parametrize("block_size", [16, 64])
@pytest.mark.parametrize("name", MODELS)
def test_replays_say_what_launches_say(tiny: Tiny, name: str, block_size: int) -> None:
    """Five sequences that end one after the other, so that steps of 8, 4, 2 and 1 rows are captured."""
    loaded = load(tiny(name), block_size=block_size)
    assert loaded.capturable
    found = []
    for graphs in (False, True):
        engine = engine_of(loaded, graphs=graphs)
        sequences = [engine.add(p, SamplingParams(max_tokens=6 + 5 * i)) for i, p in enumerate(PROMPTS)]
        list(engine.run_until_idle())
        found.append(sequences)
    assert engine.pipeline.graphs.buckets == [8, 4, 2, 1]
    launched, replayed = found
    assert [s.output_ids for s in replayed] == [s.output_ids for s in launched]
    for one, other in zip(replayed, launched, strict=True):
        assert float((torch.stack(one.logits) - torch.stack(other.logits)).abs().max()) < LOGIT_TOLERANCE


@pytest.mark.parametrize("kv_cache_dtype", ["bf16", "fp8", "int8_per_token_head"])
def test_bf16_with_every_cache(tiny: Tiny, kv_cache_dtype: str) -> None:
    """Of rounding and of ties nothing is asked but that most tokens agree."""
    loaded = load(tiny("qwen3"), dtype="bf16", kv_cache_dtype=kv_cache_dtype)
    launched, replayed = (generate(engine_of(loaded, graphs=graphs), PROMPTS, 24) for graphs in (False, True))
    agree = [
        one == other
        for a, b in zip(replayed, launched, strict=True)
        for one, other in zip(a.output_ids[:4], b.output_ids[:4], strict=True)
    ]
    assert sum(agree) >= 0.8 * len(agree)


@pytest.mark.parametrize("draw", DRAWS)
def test_replays_draw_what_launches_draw(tiny: Tiny, draw: str) -> None:
    """A full bucket takes the same numbers from the same generator; warming up takes none."""
    loaded = load(tiny("llama-3-gqa"))
    outputs = []
    for graphs in (False, True, True):
        engine = engine_of(loaded, graphs=graphs, seed=5)
        outputs.append([s.output_ids for s in run(engine, DRAWS[draw], count=4)])
    assert outputs[0] == outputs[1] == outputs[2]
    assert len({tuple(tokens) for tokens in outputs[0]}) == 4


def guarded(launch: Callable[..., Any]) -> Callable[..., Any]:
    """What fails where it waits for the device."""

    def call(*args: object, **kwargs: object) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return launch(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return call


def test_launching_never_waits_for_the_device(tiny: Tiny) -> None:
    """Decode steps, and the prompts' own, behind which the first of them is launched."""
    engine = engine_of(load(tiny("llama-3-gqa"), prefix_caching=False))  # hits would prefill other shapes
    engine.keep_logits = False
    engine.prepare([4])
    pipeline = engine.pipeline
    run(engine, SamplingParams(max_tokens=2), count=4)  # compiles what prefills
    behind = pipeline.num_launched
    pipeline.launch, engine.compute = guarded(pipeline.launch), guarded(engine.compute)
    run(engine, SamplingParams(max_tokens=40), count=4)
    assert pipeline.num_launched - behind == 39


def test_steps_are_captured_once_and_allocate_nothing(tiny: Tiny) -> None:
    engine = engine_of(load(tiny("llama-3-gqa"), prefix_caching=False))  # hits would prefill other shapes
    engine.keep_logits = False
    engine.prepare(range(1, 5))
    run(engine, SamplingParams(max_tokens=40), count=4)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), cold_start_of(engine)
    for _ in range(3):
        run(engine, SamplingParams(max_tokens=40), count=4)
    torch.cuda.synchronize()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), cold_start_of(engine)) == before
    assert cold_start_of(engine).graphs == 3
    assert cold_start_of(engine).capture_s > 0.0
    assert engine.pipeline.num_launched == 4 * 39
