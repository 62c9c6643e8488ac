"""The engine's side of against_bench.py: a trace served and single steps, in turns, on one load of the model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from kvtool.bench.accounting import step_bytes
from kvtool.bench.cases.serve import serve
from kvtool.bench.cases.workload import Workload
from kvtool.bench.definitions import DEFINITIONS
from kvtool.bench.harness import case_inputs, engine_memory, run_requests, sample_of
from kvtool.bench.metrics import metrics_of
from kvtool.catalog.resolve import resolve_model
from kvtool.engine.config import EngineConfig
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.machine.environment import describe_environment
from kvtool.machine.pace import Disturbance, is_disturbed
from kvtool.results import BenchDocument, Check, LatencyCase, Roofline, Sample
from kvtool.workloads import Request, fixed
from kvtool.workloads.making.options import Making

TURNS, MOST_TURNS, BUDGET_S = 4, 5, 60.0  # seconds after which no other turn begins
PASSES = 2  # through the steps, before a turn's trace and after it: one that somebody disturbs is no median then
STEPS = ((2, 1, 192), (16, 1, 192), (32, 2, 192), (224, 1, 0), (320, 1, 0))  # new tokens, prompts, tokens that hit
OUTPUT_LEN, PAUSE_S = 6, 0.2
Steps = dict[tuple[int, int, int], list[Sample]]
T = TypeVar("T")


@dataclass(frozen=True)
class Turn:
    """What the engine did of the trace, and the steps before and after it."""

    hit_tokens: int
    ttft_s: list[float]
    steps: Steps


def beside(work: Callable[[], T]) -> tuple[T, float]:
    """What it gives, and how many cores others kept busy meanwhile."""
    load = Disturbance()
    found = work()
    return found, load.cores() or 0.0


class Bench:
    """The engine twice on one load of the model: it serves the trace, and takes single steps."""

    def __init__(self, name: str, trace: Path, made: Making) -> None:
        model, block_size = resolve_model(name), made.block_size
        asked = Workload(gpu=False, output_len=OUTPUT_LEN, scenarios=(str(trace),), num_prompts=made.num_sessions)
        self.workload = asked.fitted(model, block_size)
        longest = OUTPUT_LEN + max(tokens + cached for tokens, _, cached in STEPS)
        pages, positions = self.workload.most_pages(block_size), max(longest, self.workload.longest_tokens) + 1
        self.loaded = LoadedModel(model, EngineConfig(block_size=block_size), max_positions=positions, num_pages=pages)
        self.serving = Engine(self.loaded, num_pages=pages)
        alone = EngineConfig(block_size=block_size, prefill_first=True)
        self.stepping = Engine(self.loaded, num_pages=8 * -(-longest // block_size), config=alone)
        self.draw = 0
        self.prefix = self._tokens(max(cached for _, _, cached in STEPS))
        run_requests(self.stepping, [Request(self.prefix, output_len=1)])

    def turns(self) -> list[Turn]:
        """TURNS of them that nobody disturbed, or as many as there were in the time."""
        self.serve(MOST_TURNS)  # warms up
        found, start_s = list[Turn](), time.monotonic()
        for number in range(MOST_TURNS):
            before, load_before = beside(self.steps)
            (hit_tokens, ttft_s), load = beside(partial(self.serve, number))
            after, load_after = beside(self.steps)
            loads = (load_before, load, load_after)
            busy = ", ".join(f"{cores:.2f}" for cores in loads)
            print(f"turn {number + 1}: others kept {busy} cores busy (steps, trace, steps)", flush=True)
            if not any(map(is_disturbed, loads)):
                found.append(Turn(hit_tokens, ttft_s, {step: [*before[step], *after[step]] for step in STEPS}))
            if len(found) == TURNS or time.monotonic() - start_s > BUDGET_S:
                break
        return found

    def serve(self, seed: int) -> tuple[int, list[float]]:
        """The trace from an empty cache, by prompts of that seed: tokens that hit, and seconds to first tokens."""
        self.serving.reset()
        served = serve(self.serving, self.workload.plan(self.workload.scenarios[0], None, seed=seed))
        return served.hit_tokens, [sequence.ttft_s for sequence in served.sequences]

    def steps(self) -> Steps:
        """Each of them PASSES times, prompts and then decodes, by prompts that nobody saw before. Each comes to a
        machine that has been idle, as most requests of the trace do: caches, threads and clock are then slower than in
        a row.
        """
        found: Steps = {step: [] for step in STEPS}
        for step in STEPS * PASSES:
            time.sleep(PAUSE_S)
            done = run_requests(self.stepping, self._requests(*step))
            found[step] += [sample_of(sequence, arm="baseline", iteration=0) for sequence in done]
        return found

    def _requests(self, tokens: int, batch: int, cached: int) -> list[Request]:
        return [Request(self.prefix[:cached] + self._tokens(tokens), OUTPUT_LEN) for _ in range(batch)]

    def _tokens(self, count: int) -> tuple[int, ...]:
        """That no earlier call gave."""
        self.draw += 1
        vocab_size = self.loaded.vocab_size
        (one,) = fixed(batch_size=1, input_len=count, output_len=1, vocab_size=vocab_size, seed=self.draw)
        return one.prompt_ids

    def document(self, steps: Steps) -> BenchDocument:
        """As `kvtool bench --parts latency,prefix` does, as far as a replay reads it; the rate is of whole prompts."""
        cases = []
        for (tokens, batch, cached), samples in steps.items():
            requests = self._requests(tokens, batch, cached)
            counted = step_bytes(self.loaded, requests)
            cases.append(
                LatencyCase(
                    name=f"latency/{tokens}x{batch}/{cached}",
                    inputs=case_inputs(self.loaded) | {"input_len": tokens + cached, "batch_size": batch},
                    samples=samples,
                    metrics=metrics_of(samples),
                    bytes=replace(counted, prefill_flops=0) if cached else counted,
                    roofline=Roofline(),
                    memory=engine_memory(self.stepping, requests, peak_bytes=None),
                    check=Check(text="steps of a profile alone"),
                )
            )
        environment = describe_environment(str(self.loaded.device))
        return BenchDocument(environment=environment, definitions=DEFINITIONS, assumptions=[], cases=list(cases))
