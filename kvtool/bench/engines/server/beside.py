"""What stands beside a server's TPOT: the floor of its card, and kvtool's own engine under the same plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

from kvtool.catalog.model import Model
from kvtool.results import SizeDecode
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.plan import make_plan
from kvtool.workloads.scenarios.base import Plan

if TYPE_CHECKING:
    from kvtool.bench.engines.server.options import ServerOptions
    from kvtool.engine.config import EngineConfig
    from kvtool.results import Sample


@dataclass(frozen=True, slots=True)
class Own:
    """Medians of kvtool's engine, in milliseconds."""

    ttft_ms: float
    tpot_ms: float | None


def decode_step(model: Model, plan: Plan, options: ServerOptions) -> SizeDecode:
    """Bytes, FLOPs and floor of a step of as many requests as run at a time, halfway through their answers."""
    longest = max(1, round(median(turn.prompt_tokens + turn.output_len / 2 for turn in plan.turns)))
    requests = sum(turn.answers for turn in plan.turns)
    at_once = min(options.concurrency or requests, requests)
    sizing = SizeOptions(
        contexts=(longest,),
        batch_sizes=(at_once,),
        block_size=options.block_size,
        parallel=Parallel(tp=options.tp),
        gpu=options.gpu,
    )
    return make_plan(model, sizing, "auto").row(longest, at_once).decode


def run_own(model: Model, config: EngineConfig, plan: Plan, options: ServerOptions) -> Own:
    """The same requests by kvtool's engine on this machine, once to warm up and once measured. Raises DeviceError."""
    samples: list[Sample] = []
    from kvtool.bench.cases.serve import serve
    from kvtool.bench.harness import run_requests
    from kvtool.engine.engine import Engine
    from kvtool.engine.loaded import LoadedModel
    from kvtool.workloads import Request

    plan = replace(plan, turns=tuple(replace(turn, think_s=0.0) for turn in plan.turns))
    pages = plan.pages(config.block_size)
    loaded = LoadedModel(model, config, max_positions=plan.longest_tokens + 1, num_pages=pages)
    loaded.require_room(pages)
    engine = Engine(loaded, num_pages=pages, config=config)
    for _ in range(2):
        engine.cache.reset()
        for prompt in plan.priming:
            run_requests(engine, [Request(prompt, output_len=1)])
        engine.cache.reset_counters()
        samples = serve(engine, plan, concurrency=options.concurrency, forks=False).samples("own", 0)
    tpots = [sample.tpot_s for sample in samples if sample.tpot_s is not None]
    return Own(
        ttft_ms=1e3 * median(sample.ttft_s for sample in samples),
        tpot_ms=1e3 * median(tpots) if tpots else None,
    )
