"""Loads a folder as a user would, runs prompts through an engine, and compares every logit with the reference."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from kvtool.catalog.resolve import resolve_model
from kvtool.engine.config import EngineConfig
from kvtool.engine.engine import Engine
from kvtool.engine.graphs.capture import Capture, Step
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.sequence import SamplingParams, Sequence
from kvtool.kernels.interface import Kernels
from tests.engine.tiny import MAX_POSITIONS, VOCAB_SIZE, Reference

resolved = cache(resolve_model)  # parsing the catalogue takes longer than running a tiny model


def use(loaded: LoadedModel, kernels: Kernels) -> None:
    """Have a loaded model's steps run by other kernels."""
    loaded.kept = replace(loaded.kept, kernels=kernels)


def load(path: Path, *, dtype: str = "fp32", **config: object) -> LoadedModel:
    """The model and the weights of a folder or a .gguf file, on the CPU."""
    settings = EngineConfig(weights=str(path), dtype=dtype, device="cpu", **config)
    return LoadedModel(resolved(str(path)), settings, max_positions=MAX_POSITIONS)


def engine_of(loaded: LoadedModel, *, num_pages: int = 64, capture: Capture | None = None, **config: object) -> Engine:
    """An engine that keeps its logits; `config` overrides what the model was loaded with."""
    settings = {name: getattr(loaded.config, name) for name in loaded.config.__slots__} | config
    engine = Engine(loaded, num_pages=num_pages, config=EngineConfig(**settings), capture=capture)
    engine.keep_logits = True
    return engine


def as_it_is(step: Step, generator: torch.Generator) -> Step:
    """The capture of a device without graphs: the static step itself, warmed up; all else is as with graphs."""
    state = generator.get_state()
    for _ in range(2):
        step()
    generator.set_state(state)
    return step


def prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(VOCAB_SIZE, (length,), generator=generator).tolist()


def generate(engine: Engine, prompts: list[list[int]], max_tokens: int) -> list[Sequence]:
    """Greedy tokens after each prompt, all submitted at once; the cache is checked after every step."""
    sequences = [engine.add(prompt_ids, SamplingParams(max_tokens=max_tokens)) for prompt_ids in prompts]
    for _ in engine.run_until_idle():
        engine.cache.check()
    return sequences


def largest_difference(reference: Reference, sequence: Sequence) -> float:
    """Between the logits of every token that came out and what transformers computes for the same tokens."""
    expected = reference.logits(sequence.token_ids[:-1])[sequence.prompt_tokens - 1 :]
    assert len(sequence.logits) == len(expected) == len(sequence.output_ids)
    assert torch.stack(sequence.logits).argmax(dim=-1).tolist() == sequence.output_ids
    return float((torch.stack(sequence.logits) - expected).abs().max())


def agreement(reference: Reference, sequence: Sequence) -> float:
    """The share of a sequence's greedy tokens that are transformers' in fp32 for the same tokens before, or as good as:
    a quarter of the logits' spread is more than bf16 moves two of them apart, and a tenth of what chance gives."""
    expected = reference.logits(sequence.token_ids[:-1])[sequence.prompt_tokens - 1 :]
    chosen = expected.gather(1, torch.tensor(sequence.output_ids)[:, None])[:, 0]
    return float((expected.amax(dim=-1) - chosen <= 0.25 * expected.std()).float().mean())
