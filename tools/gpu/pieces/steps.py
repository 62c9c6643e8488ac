"""Whole models of random weights: the time of their tokens, and what a replayed graph of a step is made of."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial

from tools.gpu.cases import Case, Result, serve
from tools.gpu.journal import Journal
from tools.gpu.pieces.measuring import DEVICE, PAGE, Batch, bench_document
from tools.gpu.pieces.variants import beside, instead
from tools.gpu.store import Store
from tools.gpu.timeline import Launch, as_table

K = 1024
STEPS = (
    Batch("llama-3.1-8b", K, 1, 64),
    Batch("llama-3.2-1b", K, 1, 64),
    Batch("qwen3-0.6b", K, 1, 64),
    Batch("deepseek-v2-lite", K, 1, 64),
    Batch("llama-3.1-8b", 4 * K, 64, 16),
)
PREFILL = Batch("llama-3.1-8b", 8 * K, 1, 4)
BESIDE_ENGINES = (Batch("llama-3.2-1b", K, 1, 64), Batch("llama-3.2-1b", K, 8, 64))
IN_ORDER_TOO = STEPS[:1]
PROFILED_STEPS, WARM_UP_STEPS = 8, 4


def cases(given: Namespace) -> Sequence[Case]:
    """By the word: none for decode steps, `prefill` for a long prompt, `peers` for other engines beside ours."""
    store = Store(given.folder, given.spare)
    if given.words == ["prefill"]:
        return [Case(PREFILL.name, partial(bench_document, store, PREFILL))]
    if given.words == ["peers"]:
        from kvtool.bench.engines.engine import ENGINE_PEERS

        raced = partial(bench_document, store, peers=ENGINE_PEERS)
        return [Case(f"{batch.name} beside engines", partial(raced, batch), 200.0) for batch in BESIDE_ENGINES]
    return [case for batch in STEPS for case in of_batch(store, batch, Journal(store, given.piece))]


def of_batch(store: Store, batch: Batch, journal: Journal) -> list[Case]:
    """Its times and its timeline; in order too, where that is compared or is all that goes well."""
    timed = Case(batch.name, partial(bench_document, store, batch, num_iters=iterations(batch)))
    line = Case(f"timeline of {batch.name}", partial(timeline, batch))
    how = beside if batch in IN_ORDER_TOO else instead
    return [timed, how("in order", timed, journal), line, instead("in order", line, journal)]


def iterations(batch: Batch) -> int:
    """Of many long prompts one has to do: their prefill takes seconds, and each of their decode steps is a sample."""
    return 1 if batch.batch_size > 8 else 3


def timeline(batch: Batch, device: str = DEVICE) -> Result:
    """Every launch of decode steps, as the device saw them."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from kvtool.catalog.resolve import resolve_model
    from kvtool.engine.config import EngineConfig
    from kvtool.engine.engine import Engine
    from kvtool.engine.loaded import LoadedModel
    from kvtool.engine.sequence import SamplingParams
    from kvtool.units import ceil_div

    longest = batch.input_len + WARM_UP_STEPS + PROFILED_STEPS + 4
    pages = batch.batch_size * ceil_div(longest, PAGE)
    config = EngineConfig(device=device, block_size=PAGE, num_layers=batch.num_layers, prefix_caching=False)
    loaded = LoadedModel(resolve_model(batch.model), config, max_positions=longest, num_pages=pages)
    engine = Engine(loaded, num_pages=pages)
    engine.prepare([batch.batch_size])
    params = SamplingParams(max_tokens=WARM_UP_STEPS + PROFILED_STEPS + 3, ignore_eos=True)
    prompt = [7 * token % loaded.vocab_size for token in range(batch.input_len)]
    sequences = [engine.add(prompt, params) for _ in range(batch.batch_size)]
    while min(sequence.num_output for sequence in sequences) < WARM_UP_STEPS:
        engine.step()
    on_gpu = loaded.device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiled:
        for _ in range(PROFILED_STEPS):
            engine.step()
        if on_gpu:
            torch.cuda.synchronize()
    launches = [
        Launch(event.name, float(event.time_range.start), float(event.time_range.elapsed_us()))
        for event in profiled.events()
        if not on_gpu or event.device_type == torch.autograd.DeviceType.CUDA
    ]
    if not launches:
        raise RuntimeError("the profiler saw no launch: it may not look at this card")
    return {"model": batch.model, "input_len": batch.input_len, "batch_size": batch.batch_size} | as_table(
        launches, PROFILED_STEPS
    )


if __name__ == "__main__":
    sys.exit(serve(cases))
