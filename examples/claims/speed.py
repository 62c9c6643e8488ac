"""Claims about time and work: times from the documents that measure.py left here, work counted by kvtool.sizing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from claim import RIGHT, WRONG, Claim, sizes

from kvtool.catalog.resolve import resolve_model
from kvtool.results import BenchDocument, Case, read_document
from kvtool.sizing.speed.traffic import attention_flops, decode_flops, prefill_flops
from kvtool.units import format_bytes

HERE = Path(__file__).parent
SAME_TIME = 1.1  # the longest step over the shortest, where they may be called the same


def speed_claims() -> Iterator[Claim]:
    yield constant_step()
    yield quadratic_memory()
    yield first_layer_only()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """At one context: one decode step with a cache, and the prefill that it repeats without one. Milliseconds."""

    context: int
    with_cache_ms: float
    without_cache_ms: float
    kv_read_bytes: int

    @property
    def speedup(self) -> float:
        return self.without_cache_ms / self.with_cache_ms


def recorded(name: str) -> BenchDocument:
    return read_document(HERE / name, BenchDocument)


def steps(document: BenchDocument) -> list[Step]:
    """By growing context. A step is the median of the gaps between tokens."""
    return sorted(map(_step, document.cases), key=lambda step: step.context)


def _step(case: Case) -> Step:
    assert case.metrics.itl_ms is not None
    assert case.metrics.ttft_ms is not None
    context = case.inputs["input_len"]
    assert isinstance(context, int)
    return Step(
        context=context,
        with_cache_ms=case.metrics.itl_ms.p50,
        without_cache_ms=case.metrics.ttft_ms.p50,
        kv_read_bytes=case.bytes.kv_read,
    )


def constant_step_verdict(measured: list[Step]) -> str:
    """Right where the steps take the same time, and the speed-ups are those that are said."""
    times_ms = [step.with_cache_ms for step in measured]
    same = max(times_ms) / min(times_ms) <= SAME_TIME
    return RIGHT if same and speedups_as_said(measured) else WRONG


def speedups_as_said(measured: list[Step]) -> bool:
    """Whether the prefill takes a tenth of the context times as long, within a factor of two."""
    return all(0.5 <= step.speedup / (step.context / 10) <= 2 for step in measured)


def constant_step() -> Claim:
    measured = steps(recorded("decode.json"))
    contexts, times_ms, speedups = (
        " / ".join(parts)
        for parts in (
            [f"{step.context:,}" for step in measured],
            [f"{step.with_cache_ms:.0f}" for step in measured],
            [f"{step.speedup:.0f}x" for step in measured],
        )
    )
    first, last = measured[0], measured[-1]
    near = "come near what is said" if speedups_as_said(measured) else "are others too"
    return Claim(
        said="With a cache every step takes the same 10 ms at 100, 1000 and 10000 tokens: 10x, 100x, 1000x faster",
        found=f"{times_ms} ms a step at {contexts} tokens; computing all of them again takes {speedups} as long",
        verdict=constant_step_verdict(measured),
        why=f"A decode step reads the cache: {format_bytes(first.kv_read_bytes)} at {first.context} tokens, "
        f"{format_bytes(last.kv_read_bytes)} at {last.context:,}, beside the weights. The speed-ups {near} here.",
        shown_by=("kvtool bench smollm2-135m --input-len 100,1000,10000", "python examples/claims/speed.py"),
    )


def quadratic_memory() -> Claim:
    command = "kvtool size llama-2-7b --context 16k,32k"
    short, long = (row.kv.bytes_per_sequence for row in sizes(command))
    model = resolve_model("llama-2-7b")
    pairs = [attention_flops(model, new_tokens=tokens, cached_tokens=0) for tokens in (16384, 32768)]
    measured = peaks(recorded("no-cache.json"))
    first, last = bytes_per_token(measured)
    lengths = list(measured)
    return Claim(
        said="Without a cache memory grows as O(L^2)",
        found=f"from 16k to 32k tokens all K and V of Llama-2-7B grow {long / short:g}x, attention's work "
        f"{pairs[1] / pairs[0]:.1f}x; measured, SmolLM2's process takes {first / 1e3:.0f} kB a token more from "
        f"{lengths[0]:,} to {lengths[1]:,} tokens and {last / 1e3:.0f} kB from there to {lengths[2]:,}",
        verdict=memory_verdict(measured),
        why="The work grows so; memory grows with the tokens of the step, and is free again after it.",
        shown_by=(command, "attention_flops(model, new_tokens=L, cached_tokens=0)", "kvtool bench --parts no-cache"),
    )


def peaks(document: BenchDocument) -> dict[int, int]:
    """The most memory of the process by context, of the runs that keep nothing."""
    return {
        int(str(case.inputs["input_len"])): case.memory.peak_bytes or 0
        for case in document.cases
        if case.inputs["arm"] == "no_cache"
    }


def bytes_per_token(measured: dict[int, int]) -> list[float]:
    """What a token more takes, from each context to the next."""
    points = sorted(measured.items())
    return [(held - before) / (tokens - fewer) for (fewer, before), (tokens, held) in pairwise(points)]


def memory_verdict(measured: dict[int, int]) -> str:
    """Right where a token of a long sequence takes more than one of a short: of a square, each takes 2 L more."""
    each = bytes_per_token(measured)
    return RIGHT if each[-1] >= 2 * each[0] else WRONG


def first_layer_only(context: int = 4096) -> Claim:
    command = f"kvtool size llama-3.1-8b --context {context}"
    step = sizes(command)[0].decode.flops_per_step
    model = resolve_model("llama-3.1-8b")
    others = replace(model, layers=model.layers[1:])
    again = prefill_flops(others, context)
    assert step is not None
    assert again is not None
    assert step == decode_flops(model, [context])
    return Claim(
        said="Caching only the first layer would do",
        found=f"the other {others.num_layers} layers of Llama-3.1-8B redo {again / 1e12:.1f} TFLOP at {context} "
        f"tokens, where a step with the whole cache does {step / 1e12:.3f}: {again / step:,.0f}x",
        verdict=RIGHT if again <= SAME_TIME * step else WRONG,
        why="K and V of a layer come from the layer below: without its cache every token passes through it again.",
        shown_by=(command, "prefill_flops(replace(model, layers=model.layers[1:]), 4096)"),
    )


def report() -> Iterator[str]:
    """The measured times as lines of Markdown, with the hardware."""
    document = recorded("decode.json")
    facts = document.environment
    yield (
        f"Measured on {facts['cpu']}, {facts['physical_cores']} cores, torch {facts['torch']}, "
        f"{str(facts['date_utc'])[:10]}: SmolLM2-135M in bf16, one sequence; medians of the gaps between\n"
        "tokens, of one run."
    )
    yield ""
    yield "| tokens | a step with the cache | cache read a step | prefill of as many | ratio |"
    yield "|---|---|---|---|---|"
    for step in steps(document):
        yield (
            f"| {step.context:,} | {step.with_cache_ms:.1f} ms | {format_bytes(step.kv_read_bytes)} "
            f"| {step.without_cache_ms:,.0f} ms | {step.speedup:.0f}x |"
        )
    yield "\nWithout a cache a step computes every token again, as a prefill does. Run so, by the same engine:\n"
    yield "| tokens | a step without a cache | with pages | peak of the process without |"
    yield "|---|---|---|---|"
    measured = recorded("no-cache.json")
    gaps_ms = {case.name: case.metrics.itl_ms.p50 for case in measured.cases if case.metrics.itl_ms}
    for context, peak in peaks(measured).items():
        without, paged = (gaps_ms[f"no-cache/{arm}/{context}"] for arm in ("no_cache", "paged"))
        yield f"| {context:,} | {without:,.0f} ms | {paged:.1f} ms | {format_bytes(peak)} |"


if __name__ == "__main__":
    print("\n".join(report()))
