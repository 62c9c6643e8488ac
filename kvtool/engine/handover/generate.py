"""Prompts in, a generate document out, computed by engines that are apart."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from contextlib import closing
from typing import Any

from kvtool.catalog.model import Model
from kvtool.engine.config import EngineConfig
from kvtool.engine.handover.fleet import start_fleet
from kvtool.engine.handover.messages import Ask, Served
from kvtool.engine.handover.options import Disaggregation
from kvtool.engine.handover.summary import handover_of
from kvtool.engine.sequence import SamplingParams
from kvtool.engine.text import Tokenizer
from kvtool.results import GenerateDocument, GeneratedSequence, tpot_s
from kvtool.system.interrupts import interruptible
from kvtool.units import ceil_div


def generate_apart(
    model: Model,
    config: EngineConfig,
    prompts: Seq[list[int]],
    params: SamplingParams,
    apart: Disaggregation,
    *,
    tokenizer: Tokenizer | None,
    on_token: Callable[[int, int], None],
    environment: dict[str, Any],
) -> GenerateDocument:
    """All prompts at once. Raises KvtoolError or DeviceError."""
    longest = max((len(prompt) for prompt in prompts), default=0) + params.max_tokens
    pages = max(1, sum(ceil_div(len(prompt) + params.max_tokens - 1, config.block_size) for prompt in prompts))
    asks = [Ask(request=i, prompt=prompt, params=params, arrival_s=0.0) for i, prompt in enumerate(prompts)]
    with interruptible(), closing(start_fleet(model, config, apart, max_positions=longest, num_pages=pages)) as fleet:
        served = fleet.run(asks, on_token)
    return GenerateDocument(
        model=model.id,
        inputs={
            "weights": config.weights,
            "dtype": config.dtype,
            "kv_cache_dtype": config.kv_cache_dtype,
            "block_size": config.block_size,
            "num_layers": config.num_layers,
            "device": config.device,
            "backend": config.backend,
            "output_len": params.max_tokens,
            "ignore_eos": params.ignore_eos,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "seed": config.seed,
            "disaggregate": str(apart),
        },
        environment=environment,
        assumptions=["weights are random: the tokens mean nothing"] if config.weights == "random" else [],
        sequences=[_sequence(one, config.block_size, tokenizer) for one in served],
        handover=handover_of(served, apart),
    )


def _sequence(one: Served, block_size: int, tokenizer: Tokenizer | None) -> GeneratedSequence:
    first_s, last_s = (one.times_s[at] - one.ask.arrival_s for at in (0, -1))
    seconds = tpot_s(first_s, last_s, len(one.tokens))
    return GeneratedSequence(
        prompt_tokens=len(one.ask.prompt),
        output_ids=one.tokens,
        text=None if tokenizer is None else tokenizer.decode(one.tokens),
        ttft_ms=first_s * 1e3,
        tpot_ms=None if seconds is None else seconds * 1e3,
        pages=ceil_div(len(one.ask.prompt) + len(one.tokens) - 1, block_size),
        cached_tokens=one.cached_tokens,
    )
