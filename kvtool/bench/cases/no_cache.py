"""The no-cache part: what keeping K and V buys, and what each way of keeping them costs, at growing lengths."""

from __future__ import annotations

from kvtool.bench.accounting import step_bytes
from kvtool.bench.cases.arms import ARMS, Generated, generate
from kvtool.bench.checks import compare_runs
from kvtool.bench.harness import case_inputs
from kvtool.bench.metrics import metrics_of
from kvtool.bench.options import BenchOptions
from kvtool.engine.loaded import LoadedModel
from kvtool.machine.interleaved import Windows
from kvtool.machine.memory import peak_memory
from kvtool.results import Case, Check, Memory, Roofline, Sample
from kvtool.units import round_up
from kvtool.workloads import fixed

MAX_PREALLOCATED_TOKENS = 8192  # of a model that allows more: the point is made, and it fits


def no_cache_cases(loaded: LoadedModel, options: BenchOptions, windows: Windows, *, input_len: int) -> list[Case]:
    """One case an arm at one length. Arms take turns within each iteration."""
    model_max = loaded.model.max_position_embeddings or MAX_PREALLOCATED_TOKENS
    total = input_len + options.no_cache_output_len
    max_tokens = max(total, min(model_max, MAX_PREALLOCATED_TOKENS))
    runs: dict[str, list[Generated]] = {arm: [] for arm in ARMS}
    peaks: dict[str, int | None] = {}
    for iteration in range(options.num_iters):
        windows.measure()
        prompt = list(
            fixed(
                batch_size=1,
                input_len=input_len,
                output_len=options.no_cache_output_len,
                vocab_size=loaded.vocab_size,
                seed=options.seed + iteration,
            )[0].prompt_ids
        )
        for arm in ARMS if iteration % 2 == 0 else reversed(ARMS):
            peak_bytes = peak_memory(loaded.device, apart_bytes=windows.buffer_bytes)
            runs[arm].append(generate(loaded, arm, prompt, options.no_cache_output_len, max_tokens=max_tokens))
            peaks[arm] = peak_bytes()
    windows.measure()
    return [
        _case(loaded, options, arm, runs, input_len=input_len, max_tokens=max_tokens, peak_bytes=peaks[arm])
        for arm in ARMS
    ]


def _case(
    loaded: LoadedModel,
    options: BenchOptions,
    arm: str,
    runs: dict[str, list[Generated]],
    *,
    input_len: int,
    max_tokens: int,
    peak_bytes: int | None,
) -> Case:
    samples = [_sample(run, arm, iteration, input_len) for iteration, run in enumerate(runs[arm])]
    metrics = metrics_of(samples)
    request = fixed(batch_size=1, input_len=input_len, output_len=options.no_cache_output_len, vocab_size=2, seed=0)
    moved = step_bytes(loaded, request)
    stored_tokens = input_len + options.no_cache_output_len - 1
    held = runs[arm][-1].kv_bytes
    return Case(
        name=f"no-cache/{arm}/{input_len}",
        part="no-cache",
        inputs=case_inputs(
            loaded,
            arm=arm,
            input_len=input_len,
            output_len=options.no_cache_output_len,
            batch_size=1,
            max_tokens=max_tokens if arm == "preallocated" else None,
            num_iters=options.num_iters,
            num_iters_warmup=0,
            seed=options.seed,
            graphs=False,
        ),
        samples=samples,
        metrics=metrics,
        bytes=moved,
        roofline=Roofline(),
        memory=Memory(
            kv_predicted_bytes=_predicted(loaded, arm, stored_tokens, max_tokens),
            kv_allocated_bytes=held,
            kv_pool_bytes=None,
            kv_waste_bytes=0 if arm == "no_cache" else held - sum(s.stored_bytes(stored_tokens) for s in loaded.specs),
            peak_bytes=peak_bytes,
        ),
        prefix=None,
        check=Check(text="the arm the others are compared with")
        if arm == "paged"
        else compare_runs(
            runs[arm],
            runs["paged"],
            dtype=loaded.dtype,
            names=f"{arm} against paged",
        ),
    )


def _sample(run: Generated, arm: str, iteration: int, input_len: int) -> Sample:
    return Sample(
        arm=arm,
        iteration=iteration,
        ttft_s=run.times_s[0],
        e2e_s=run.times_s[-1],
        itl_s=[b - a for a, b in zip(run.times_s, run.times_s[1:], strict=False)],
        output_tokens=len(run.output_ids),
        prompt_tokens=input_len,
        cached_tokens=0,
    )


def _predicted(loaded: LoadedModel, arm: str, stored_tokens: int, max_tokens: int) -> int:
    """From the specs: no tokens, just the tokens, the maximum, or whole pages."""
    tokens = {
        "no_cache": 0,
        "contiguous": stored_tokens,
        "preallocated": max_tokens,
        "paged": round_up(stored_tokens, loaded.config.block_size),
    }[arm]
    return sum(spec.bytes_per_token for spec in loaded.specs) * tokens
