"""Prompts in, a generate document out, tokens told as they come."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import asdict, replace
from typing import Any

from kvtool.catalog.model import Model
from kvtool.engine.config import EngineConfig
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.sampler import draw_of
from kvtool.engine.sequence import SamplingParams, Sequence
from kvtool.engine.text import Tokenizer
from kvtool.results import GenerateDocument, GeneratedSequence, TierUse, tpot_s
from kvtool.units import ceil_div

OnToken = Callable[[int, int], None]
"""Told the index of the prompt and its new token id."""


def generate(
    model: Model,
    config: EngineConfig,
    prompts: Seq[list[int]],
    params: SamplingParams,
    *,
    tokenizer: Tokenizer | None = None,
    on_token: OnToken = lambda index, token: None,
    environment: dict[str, Any],
) -> GenerateDocument:
    """All prompts at once, through one pool that just holds them. Raises KvtoolError or DeviceError."""
    longest = max((len(prompt) for prompt in prompts), default=0) + params.max_tokens
    pages = sum(ceil_div(len(prompt) + params.max_tokens - 1, config.block_size) for prompt in prompts)
    loaded = LoadedModel(model, config, max_positions=longest, num_pages=pages)
    engine = Engine(loaded, num_pages=max(1, pages), config=replace(config, prefill_first=True))
    engine.prepare([len(prompts)], draw_of([params]))
    sequences = [engine.add(prompt, params) for prompt in prompts]
    index_of = {sequence.id: index for index, sequence in enumerate(sequences)}
    for stepped in engine.run_until_idle():
        for sequence in stepped:
            on_token(index_of[sequence.id], sequence.token_ids[-1])
    engine.close()
    return GenerateDocument(
        model=model.id,
        inputs={
            "weights": config.weights,
            "dtype": loaded.dtype,
            "kv_cache_dtype": loaded.cache_format.name,
            "block_size": config.block_size,
            "num_layers": loaded.model.num_layers,
            "device": str(loaded.device),
            "backend": loaded.backend,
            "graphs": engine.pipeline is not None,
            "output_len": params.max_tokens,
            "ignore_eos": params.ignore_eos,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "seed": config.seed,
            "tiers": None if config.tiers is None else str(config.tiers),
            "write_policy": None if config.tiers is None else str(config.tiers.write),
        },
        environment=environment,
        assumptions=loaded.assumptions(),
        sequences=[
            GeneratedSequence(
                prompt_tokens=sequence.prompt_tokens,
                output_ids=sequence.output_ids,
                text=None if tokenizer is None else tokenizer.decode(sequence.output_ids),
                ttft_ms=sequence.ttft_s * 1e3,
                tpot_ms=_tpot_ms(sequence),
                pages=sequence.peak_pages,
            )
            for sequence in sequences
        ],
        tiers=[TierUse(**asdict(counters)) for counters in engine.tiers()],
    )


def _tpot_ms(sequence: Sequence) -> float | None:
    seconds = tpot_s(sequence.ttft_s, sequence.e2e_s, len(sequence.output_ids))
    return None if seconds is None else seconds * 1e3
