"""Prompts in, a generate document out, tokens told as they come."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import asdict, replace
from typing import Any

from kvtool.cache.sharing import shared_runs
from kvtool.catalog.model import Model
from kvtool.engine.config import EngineConfig
from kvtool.engine.engine import Engine
from kvtool.engine.handover.generate import generate_apart
from kvtool.engine.handover.options import Disaggregation
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.ranks.lead import ranked_config
from kvtool.engine.ranks.open import loaded_on
from kvtool.engine.ranks.replicas import Replicas, engine_on
from kvtool.engine.ranks.use import rank_uses
from kvtool.engine.sampler import draw_of
from kvtool.engine.sequence import SamplingParams, Sequence
from kvtool.engine.text import Tokenizer
from kvtool.machine.ranks.layout import RankLayout
from kvtool.results import CachedPages, GenerateDocument, GeneratedSequence, TierUse, tpot_s
from kvtool.system.errors import KvtoolError
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
    in_turns: bool = False,
    layout: RankLayout | None = None,
    apart: Disaggregation | None = None,
) -> GenerateDocument:
    """All prompts at once, through one pool that just holds them; `in_turns` one after the other, so that each finds
    what those before it left, and the document tells what is cached in the end. The ranks of a `layout` run it
    together; engines that are `apart` hand pages over. Raises KvtoolError or DeviceError."""
    if apart is not None:
        return generate_apart(
            model, config, prompts, params, apart, tokenizer=tokenizer, on_token=on_token, environment=environment
        )
    layout = layout or RankLayout()
    if layout.ranks > 1:
        config = ranked_config(config, layout)
    longest = max((len(prompt) for prompt in prompts), default=0) + params.max_tokens
    each = [ceil_div(len(prompt) + params.max_tokens - 1, config.block_size) for prompt in prompts]
    pages = max(sum(each[place :: layout.dp]) for place in range(layout.dp))  # replicas take turns
    with loaded_on(layout, model, config, max_positions=longest, num_pages=pages) as loaded:
        return _generated(
            loaded, config, prompts, params, max(1, pages), tokenizer, on_token, environment, in_turns, layout
        )


def _generated(
    loaded: LoadedModel,
    config: EngineConfig,
    prompts: Seq[list[int]],
    params: SamplingParams,
    pages: int,
    tokenizer: Tokenizer | None,
    on_token: OnToken,
    environment: dict[str, Any],
    in_turns: bool,
    layout: RankLayout,
) -> GenerateDocument:
    most = 1 if in_turns else config.max_num_seqs
    settings = replace(config, prefill_first=True, max_num_seqs=most)
    engine = engine_on(loaded, num_pages=pages, config=settings)
    engine.prepare([1 if in_turns else len(prompts)], draw_of([params]))
    sequences = [engine.add(prompt, params) for prompt in prompts]
    index_of = {sequence.id: index for index, sequence in enumerate(sequences)}
    for stepped in engine.run_until_idle():
        for sequence in stepped:
            on_token(index_of[sequence.id], sequence.token_ids[-1])
    engine.close()
    return GenerateDocument(
        model=loaded.model.id,
        inputs={
            **_inputs(engine, config, params),
            "tp": layout.tp,
            "cp": layout.cp,
            "dcp": layout.dcp,
            "dp": layout.dp,
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
                cached_tokens=sequence.cached_tokens or 0,
            )
            for sequence in sequences
        ],
        cache=_cached(engine, sequences) if in_turns else [],
        tiers=[TierUse(**asdict(counters)) for counters in engine.tiers()],
        ranks=rank_uses(loaded, engine.pool) if layout.ranks > 1 else [],
    )


def _cached(engine: Engine | Replicas, sequences: Seq[Sequence]) -> list[CachedPages]:
    """The pages that were left of each sequence, which holds all its tokens but the last."""
    if isinstance(engine, Replicas):
        raise KvtoolError("--show-cache draws the pages of one engine: leave --dp out")
    cache = engine.cache
    pages_of = {place: cache.index.match(sequence.token_ids[:-1]) for place, sequence in enumerate(sequences)}
    return [
        CachedPages(
            depth=run.depth,
            first_token=run.first_page * cache.block_size,
            tokens=len(run.pages) * cache.block_size,
            pages=run.pages,
            prompts=run.prompts,
        )
        for run in shared_runs(pages_of)
    ]


def _tpot_ms(sequence: Sequence) -> float | None:
    seconds = tpot_s(sequence.ttft_s, sequence.e2e_s, len(sequence.output_ids))
    return None if seconds is None else seconds * 1e3


def _inputs(
    engine: Engine | Replicas, config: EngineConfig, params: SamplingParams
) -> dict[str, str | int | float | bool | None]:
    """All that is needed to run it again, but for the prompts."""
    return {
        "weights": config.weights,
        "dtype": engine.loaded.dtype,
        "kv_cache_dtype": engine.loaded.cache_format.name,
        "block_size": config.block_size,
        "num_layers": engine.loaded.model.num_layers,
        "device": str(engine.loaded.device),
        "backend": engine.loaded.backend,
        "graphs": engine.pipeline is not None,
        "output_len": params.max_tokens,
        "ignore_eos": params.ignore_eos,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "seed": config.seed,
        "tiers": None if config.tiers is None else str(config.tiers),
        "write_policy": None if config.tiers is None else str(config.tiers.write),
    }
