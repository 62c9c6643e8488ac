"""Small bench documents whose metrics follow from their samples, made from a seed and a speed."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from kvtool.results import (
    BenchDocument,
    Check,
    LatencyCase,
    Memory,
    Metrics,
    Roofline,
    Sample,
    StepBytes,
    Summary,
    summarise,
)

ENVIRONMENT = {"device": "cpu", "cpu": "Example CPU", "torch": "2.13.0", "date_utc": "2026-01-01T00:00:00+00:00"}
INPUTS = {"model": "m", "block_size": 16, "seed": 0, "num_iters": 6, "output_len": 4, "batch_size": 2}


def document(
    tpot_factor: float = 1.0,
    noise_seed: int = 0,
    input_lens: tuple[int, ...] = (128, 512),
    environment: Mapping[str, Any] = ENVIRONMENT,
    iterations: int = 6,
    runs: int = 3,
    run_noise: float = 0.0,
    speed_noise: float = 0.0,
    **inputs: Any,
) -> BenchDocument:
    """A latency case per input length: TTFT near 1 ms a token, TPOT near 10 ms times `tpot_factor`, noise near 1 %, and
    of that share `run_noise` between runs, most of which all cases of a run have in common. The device's own speed,
    told beside each iteration, moves by `speed_noise` from one to the next, and all times with it."""
    draw = random.Random(noise_seed)
    speeds = [draw.gauss(1, 0.9 * run_noise) for _ in range(min(runs, iterations))]
    return BenchDocument(
        environment=dict(environment),
        definitions={"ttft": "first token out - request in"},
        assumptions=[],
        cases=[
            steered(
                case(
                    length, tpot_factor, draw, iterations, inputs, [s * draw.gauss(1, 0.4 * run_noise) for s in speeds]
                ),
                draw,
                speed_noise,
            )
            for length in input_lens
        ],
    )


def case(
    input_len: int,
    tpot_factor: float,
    draw: random.Random,
    iterations: int,
    inputs: Mapping[str, Any],
    run_factors: Sequence[float],
) -> LatencyCase:
    samples = [
        sample
        for iteration in range(iterations)
        for run in (iteration * len(run_factors) // iterations,)
        for sample in requests((run, iteration), input_len, tpot_factor * draw.gauss(1, 0.01), run_factors[run], draw)
    ]
    return LatencyCase(
        name=f"latency/{input_len}x2",
        inputs=INPUTS | {"num_iters": iterations, "input_len": input_len} | inputs,
        samples=samples,
        metrics=metrics(samples),
        bytes=StepBytes(weights_read=1, kv_read=1, kv_written=1, other=0, prefill_flops=1, decode_flops=1),
        roofline=Roofline(read_gbps_measured=20.0, mbu=0.5 / tpot_factor),
        memory=Memory(
            kv_predicted_bytes=4096, kv_allocated_bytes=4096, kv_pool_bytes=None, kv_waste_bytes=0, peak_bytes=None
        ),
        check=Check(text="one arm"),
    )


def steered(case: LatencyCase, draw: random.Random, speed_noise: float) -> LatencyCase:
    """The case on a device whose speed walks from iteration to iteration, as a shared machine's does."""
    if not speed_noise:
        return case
    slower = 1.0
    factors: dict[int, float] = {}
    for sample in case.samples:
        if sample.iteration not in factors:
            slower *= math.exp(draw.gauss(0, speed_noise))
            factors[sample.iteration] = slower
    samples = [
        replace(
            s,
            ttft_s=s.ttft_s * factors[s.iteration],
            e2e_s=s.e2e_s * factors[s.iteration],
            itl_s=[gap * factors[s.iteration] for gap in s.itl_s],
            device_read_gbps=20 / factors[s.iteration] * draw.gauss(1, 0.02),
            device_tflops=draw.gauss(1, 0.02),
        )
        for s in case.samples
    ]
    return replace(case, samples=samples, metrics=metrics(samples))


def requests(
    where: tuple[int, int], input_len: int, factor: float, run_factor: float, draw: random.Random
) -> list[Sample]:
    run, iteration = where
    found = []
    for _ in range(2):
        ttft_s = input_len * 1e-3 * run_factor * draw.gauss(1, 0.005)
        gaps = [10e-3 * factor * run_factor * draw.gauss(1, 0.005) for _ in range(3)]
        found.append(
            Sample(
                arm="baseline", iteration=iteration, ttft_s=ttft_s, e2e_s=ttft_s + sum(gaps), itl_s=gaps,
                output_tokens=4, prompt_tokens=input_len, cached_tokens=0, run=run,
            )
        )  # fmt: skip
    return found


def metrics(samples: list[Sample]) -> Metrics:
    tpot_ms = [(s.e2e_s - s.ttft_s) / 3 * 1e3 for s in samples]
    ttft_ms = [s.ttft_s * 1e3 for s in samples]
    return Metrics(
        ttft_ms=summary(ttft_ms),
        tpot_ms=summary(tpot_ms),
        itl_ms=summary([gap * 1e3 for s in samples for gap in s.itl_s]),
        e2e_ms=summary([s.e2e_s * 1e3 for s in samples]),
        prefill_tokens_per_s=2e3 * samples[0].prompt_tokens / summary(ttft_ms).p50,
        decode_tokens_per_s=2e3 / summary(tpot_ms).p50,
    )


def summary(values: list[float]) -> Summary:
    found = summarise(values)
    assert found is not None
    return found
