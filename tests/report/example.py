"""A bench document with plausible figures for smollm2-135m on two CPU cores, from arithmetic: no run stands behind it.

`python -m tests.report.example` writes tests/data/bench_example.json, which the tests read.
"""

from __future__ import annotations

import random
from pathlib import Path

from kvtool.results import (
    AnyCase,
    BenchDocument,
    Check,
    LatencyCase,
    Memory,
    Metrics,
    NoCacheCase,
    Prefix,
    PrefixCase,
    Roofline,
    Sample,
    StepBytes,
    Summary,
    encode,
    summarise,
)
from kvtool.system.files import write_atomic
from kvtool.units import round_up

PATH = Path(__file__).parents[1] / "data" / "bench_example.json"
WEIGHTS_BYTES = 269_030_016
PARAMS = WEIGHTS_BYTES // 2
KV_BYTES_PER_TOKEN = 30 * 2 * 3 * 64 * 2
BLOCK_SIZE = 16
READ_GBPS, COPY_GBPS, TFLOPS = 25.3, 17.5, 1.4
ARMS = ("no_cache", "contiguous", "preallocated", "paged")
INPUTS = {
    "model": "smollm2-135m",
    "kv_cache_dtype": "bf16",
    "dtype": "bf16",
    "block_size": BLOCK_SIZE,
    "weights": "random",
    "backend": "torch",
    "device": "cpu",
    "num_layers": 30,
    "seed": 0,
    "num_iters": 5,
    "num_iters_warmup": 2,
    "threads": 2,
    "concurrency": None,
    "request_rate": None,
}
ENVIRONMENT = {
    "kvtool": "0.1.0",
    "git_commit": "0123456789ab",
    "date_utc": "2026-01-02T03:04:05+00:00",
    "device": "cpu",
    "python": "3.11.7",
    "torch": "2.13.0+cpu",
    "triton": "3.7.1",
    "os": "Debian GNU/Linux 12 (bookworm)",
    "cpu": "Example CPU",
    "cpu_features": ["avx2", "avx512f", "amx_bf16"],
    "physical_cores": 2,
    "logical_cores": 2,
    "torch_threads": 2,
    "memory_bytes": 24 << 30,
    "llc_bytes": 105 << 20,
    "gpu": None,
}
DEFINITIONS = {
    "ttft": "first token out - request in, queueing included",
    "tpot": "(e2e - ttft) / (n - 1), null when n = 1",
    "itl": "every gap between tokens, pooled",
    "mbu": "bytes read and written per decode step / time / read bandwidth measured in this run",
    "mfu": "FLOPs of the prefill / time / FLOP/s measured in this run",
}


def example_document() -> BenchDocument:
    """All three parts, the same figures each time."""
    draw = random.Random(0)
    cases: list[AnyCase] = [latency_case(i, b, draw) for i in (128, 512, 1024, 2048) for b in (1, 4, 8)]
    cases += [prefix_case(rate, draw) for rate in (0.0, 0.5, 0.9)]
    cases += [no_cache_case(arm, length, draw) for length in (64, 128, 256, 512, 1024) for arm in ARMS]
    return BenchDocument(
        environment=ENVIRONMENT,
        definitions=DEFINITIONS,
        assumptions=["weights are random: timing does not depend on their values, the text does"],
        cases=cases,
    )


def latency_case(input_len: int, batch_size: int, draw: random.Random, output_len: int = 32) -> LatencyCase:
    kv_read = batch_size * (input_len + output_len // 2) * KV_BYTES_PER_TOKEN
    step_bytes = WEIGHTS_BYTES + kv_read
    ideal_s = step_bytes / (READ_GBPS * 1e9)
    tpot_s, ttft_s = ideal_s / 0.78 + 0.0011, prefill_flops(input_len, batch_size) / (0.61e12) + 0.004
    memory_bound = batch_size < 8
    return LatencyCase(
        name=f"latency/{input_len}x{batch_size}",
        inputs=INPUTS | {"input_len": input_len, "output_len": output_len, "batch_size": batch_size},
        samples=samples("baseline", ttft_s, tpot_s, input_len, output_len, batch_size, draw),
        metrics=metrics(ttft_s, tpot_s, input_len, output_len, batch_size),
        bytes=StepBytes(
            weights_read=WEIGHTS_BYTES,
            kv_read=kv_read,
            kv_written=batch_size * KV_BYTES_PER_TOKEN,
            other=0,
            prefill_flops=prefill_flops(input_len, batch_size),
            decode_flops=2 * PARAMS * batch_size,
        ),
        roofline=Roofline(
            read_gbps_measured=READ_GBPS,
            copy_gbps_measured=COPY_GBPS,
            tflops_measured=TFLOPS,
            ideal_tpot_ms=ideal_s * 1e3,
            mbu=ideal_s / tpot_s,
            mfu=prefill_flops(input_len, batch_size) / ttft_s / (TFLOPS * 1e12),
            bound="memory" if memory_bound else "compute",
            prefill_bound="compute",
        ),
        memory=memory(input_len + output_len, batch_size),
        check=Check(text="nothing to compare: one arm"),
    )


def prefix_case(hit_rate: float, draw: random.Random, input_len: int = 1024, output_len: int = 8) -> PrefixCase:
    hit_tokens = int(input_len * hit_rate) // BLOCK_SIZE * BLOCK_SIZE
    uncached_s = prefill_flops(input_len, 1) / 0.61e12
    cached_s = prefill_flops(input_len - hit_tokens, 1) / 0.61e12 + 0.006
    saved_ms = (uncached_s - cached_s) * 1e3 if hit_tokens else 0.4
    return PrefixCase(
        name=f"prefix/{input_len}@{hit_rate}",
        inputs=INPUTS
        | {"input_len": input_len, "output_len": output_len, "batch_size": 1}
        | {"prefix_len": input_len, "hit_rate": hit_rate},
        samples=samples("uncached", uncached_s, 0.013, input_len, output_len, 1, draw)
        + samples("cached", cached_s, 0.013, input_len, output_len, 1, draw, cached_tokens=hit_tokens),
        metrics=metrics(cached_s, 0.013, input_len, output_len, 1),
        bytes=StepBytes(weights_read=0, kv_read=0, kv_written=0, other=0, prefill_flops=0, decode_flops=0),
        roofline=Roofline(read_gbps_measured=READ_GBPS, copy_gbps_measured=COPY_GBPS, tflops_measured=TFLOPS),
        memory=memory(input_len + output_len, 1),
        prefix=Prefix(
            requested_hit_rate=hit_rate,
            measured_hit_rate=hit_tokens / input_len,
            ttft_saved_ms=saved_ms,
            ttft_saved_ratio=saved_ms / (uncached_s * 1e3),
            ttft_saved_ms_ci_low=saved_ms - 7.5,
            ttft_saved_ms_ci_high=saved_ms + 6.1,
            flops_saved=prefill_flops(input_len, 1) - prefill_flops(input_len - hit_tokens, 1),
            kv_bytes_not_written=hit_tokens * KV_BYTES_PER_TOKEN,
        ),
        check=Check(outputs_equal=True, max_abs_logit_diff=0.0, text="cached and uncached tokens are the same"),
    )


def no_cache_case(arm: str, length: int, draw: random.Random) -> NoCacheCase:
    kept = {"no_cache": 0, "contiguous": length, "preallocated": 1024, "paged": round_up(length, BLOCK_SIZE)}[arm]
    per_token_s = {"contiguous": 0.0140 + length * 9e-6, "preallocated": 0.0128, "paged": 0.0131}.get(
        arm, prefill_flops(length, 1) / 0.61e12 + 0.012
    )
    return NoCacheCase(
        name=f"no-cache/{arm}/{length}",
        inputs=INPUTS | {"input_len": 32, "output_len": length - 32, "batch_size": 1, "arm": arm},
        samples=samples("baseline" if arm == "paged" else arm, 0.05, per_token_s, 32, 4, 1, draw),
        metrics=metrics(0.05, per_token_s, 32, length - 32, 1),
        bytes=StepBytes(weights_read=0, kv_read=0, kv_written=0, other=0, prefill_flops=0, decode_flops=0),
        roofline=Roofline(read_gbps_measured=READ_GBPS, copy_gbps_measured=COPY_GBPS, tflops_measured=TFLOPS),
        memory=Memory(
            kv_predicted_bytes=kept * KV_BYTES_PER_TOKEN,
            kv_allocated_bytes=kept * KV_BYTES_PER_TOKEN,
            kv_pool_bytes=None,
            kv_waste_bytes=max(0, kept - length) * KV_BYTES_PER_TOKEN,
            peak_bytes=kept * KV_BYTES_PER_TOKEN * (2 if arm == "contiguous" else 1),
        ),
        check=Check(outputs_equal=True, text="the four arms give the same tokens"),
    )


def prefill_flops(tokens: int, batch_size: int) -> int:
    return batch_size * (2 * PARAMS * tokens + 30 * 2 * 9 * 64 * tokens * tokens)


def memory(tokens: int, batch_size: int) -> Memory:
    allocated = batch_size * round_up(tokens + 9, BLOCK_SIZE) * KV_BYTES_PER_TOKEN
    return Memory(
        kv_predicted_bytes=allocated,
        kv_allocated_bytes=allocated,
        kv_pool_bytes=1 << 30,
        kv_waste_bytes=allocated - batch_size * (tokens + 9) * KV_BYTES_PER_TOKEN,
        peak_bytes=None,
    )


def samples(
    arm: str,
    ttft_s: float,
    tpot_s: float,
    prompt_tokens: int,
    output_tokens: int,
    batch_size: int,
    draw: random.Random,
    cached_tokens: int = 0,
) -> list[Sample]:
    rows = []
    for iteration in range(3):
        for _ in range(batch_size):
            gaps = [tpot_s * draw.uniform(0.97, 1.05) for _ in range(output_tokens - 1)]
            first_s = ttft_s * draw.uniform(0.98, 1.04)
            rows.append(
                Sample(
                    arm=arm,
                    iteration=iteration,
                    ttft_s=first_s,
                    e2e_s=first_s + sum(gaps),
                    itl_s=gaps[:2],
                    output_tokens=output_tokens,
                    prompt_tokens=prompt_tokens,
                    cached_tokens=cached_tokens,
                )
            )
    return rows


def metrics(ttft_s: float, tpot_s: float, input_len: int, output_len: int, batch_size: int) -> Metrics:
    return Metrics(
        ttft_ms=summary(ttft_s * 1e3),
        tpot_ms=summary(tpot_s * 1e3),
        itl_ms=summary(tpot_s * 1e3),
        e2e_ms=summary((ttft_s + tpot_s * (output_len - 1)) * 1e3),
        prefill_tokens_per_s=batch_size * input_len / ttft_s,
        decode_tokens_per_s=batch_size / tpot_s,
    )


def summary(center: float) -> Summary:
    return summarise([center * f for f in (0.98, 0.99, 1.0, 1.01, 1.06)])


if __name__ == "__main__":
    write_atomic(PATH, encode(example_document()))
