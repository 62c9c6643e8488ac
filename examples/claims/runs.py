"""Claims about what a run gains, each from a document that `python examples/claims/measure.py` left beside it.

python examples/claims/runs.py
"""

from __future__ import annotations

from collections.abc import Iterator

from claim import RIGHT, WRONG, Claim
from speed import HERE, recorded, steps

from kvtool.catalog.resolve import resolve_model
from kvtool.results import KernelCase, KernelsDocument, TiersDocument, read_document
from kvtool.results.bench import AccuracyCase, WorkloadCase
from kvtool.sizing.speed.traffic import decode_flops, prefill_flops

REPORTS = HERE.parent / "reports"
MEASURE = "python examples/claims/measure.py"
SHARING = ("multi-turn", "translation", "few-shot")
LOSSLESS = "not distinguishable"  # how `kvtool bench --parts accuracy` judges a format that shows no loss


def run_claims() -> Iterator[Claim]:
    yield scenarios()
    yield first_token()
    yield int8()
    yield flash_tiling()
    yield tiers()
    yield compute_saved()
    yield latency_saved()


def measured_on() -> str:
    """The machine of the runs."""
    facts = recorded("scenarios.json").environment
    return (
        f"Scenarios, ways of attention and formats were measured on {facts['cpu']}, {facts['physical_cores']} cores, "
        f"torch {facts['torch']}, {str(facts['date_utc'])[:10]}; replays need no machine."
    )


def workloads() -> dict[str, WorkloadCase]:
    """By scenario."""
    cases = [case for case in recorded("scenarios.json").cases if isinstance(case, WorkloadCase)]
    return {case.workload.scenario: case for case in cases}


def scenarios() -> Claim:
    cases = workloads()
    saved = {name: case.workload.saved for name, case in cases.items()}
    told = ", ".join(
        f"{name} {one.ttft_ratio:.0%}" for name, one in saved.items() if one is not None and one.ttft_ratio is not None
    )
    gain = [one.ttft_ms_ci_low > 0 for name, one in saved.items() if name in SHARING and one is not None]
    alone = saved["independent"]
    assert alone is not None
    return Claim(
        said="Multi-turn chats, translation and few-shot prompts gain by a prefix cache, independent prompts do not",
        found=f"of the time to the first token are saved: {told}",
        verdict=RIGHT if gain == [True] * 3 and alone.ttft_ms_ci_low <= 0 else WRONG,
        why="What is saved is what is shared: "
        + ", ".join(f"{case.workload.hit_rate_measured:.0%}" for case in cases.values())
        + " of the prompts' tokens.",
        shown_by=(f"{MEASURE} scenarios.json",),
    )


def first_token() -> Claim:
    case = workloads()["translation"]
    saved = case.workload.saved
    assert saved is not None
    assert saved.ttft_ratio is not None
    return Claim(
        said="A shared system prompt halves the time to the first token",
        found=f"one that is {case.workload.hit_rate_measured:.0%} of the prompts saves {saved.ttft_ratio:.0%} of it, "
        f"{saved.ttft_ms:.0f} ms ({saved.ttft_ms_ci_low:.0f} to {saved.ttft_ms_ci_high:.0f})",
        verdict=RIGHT if saved.ttft_ratio >= 0.5 else WRONG,
        why="It saves nearly the shared share of the prefill: half where half is shared, and nothing of the waiting.",
        shown_by=(f"{MEASURE} scenarios.json",),
    )


def int8() -> Claim:
    document = recorded("accuracy.json")
    (case,) = [
        one
        for one in document.cases
        if isinstance(one, AccuracyCase) and one.accuracy.kv_cache_dtype == "int8_per_token_head"
    ]
    judged = case.accuracy
    taken, whole = judged.kv_bytes_per_token, 2 * 30 * 3 * 64 * 2  # of a token of SmolLM2-135M, in bf16 the second
    short, usual = (recorded(name).cases[0].metrics.tpot_ms for name in ("int8.json", "bf16.json"))
    assert short is not None
    assert usual is not None
    return Claim(
        said="INT8 halves the cache and costs no accuracy",
        found=f"{taken:,} B a token for {whole:,}, {1 - taken / whole:.0%} less; KL {judged.kl_mean:.1e}, the same "
        f"next token {judged.top1_agreement:.1%} of the time; a step takes {short.p50 / usual.p50:.2f}x as long",
        verdict=RIGHT if judged.verdict.startswith(LOSSLESS) and taken <= 0.55 * whole else WRONG,
        why="Half and a scale for each vector of 64; SmolLM2-135M's real weights on "
        f"{judged.tokens:,} tokens of a novel. A CPU pays for widening what it reads.",
        shown_by=(f"{MEASURE} accuracy.json bf16.json int8.json",),
    )


def kernel_cases() -> dict[str, KernelCase]:
    """Decode and prefill at the longest context measured."""
    cases = read_document(HERE / "kernels.json", KernelsDocument).cases
    return {part: next(case for case in reversed(cases) if part in case.kernel) for part in ("decode", "prefill")}


def share(case: KernelCase, name: str | None) -> float:
    """Of the time that the machine's limits allow; of our own kernel without a name."""
    assert case.roofline.ideal_ms is not None
    ratio = 1.0 if name is None else next(peer.ratio for peer in case.peers if peer.name == name)
    assert ratio is not None
    return case.roofline.ideal_ms / (case.metrics.time_ms.p50 * ratio)


def flash_tiling() -> Claim:
    decode, prefill = kernel_cases().values()
    before, after = share(decode, "naive"), share(decode, None)
    best = max(share(prefill, name) for name in (None, "sdpa"))
    return Claim(
        said="Flash tiling takes the use of memory bandwidth from 20 % to 80 %",
        found=f"of this CPU's: decode over {decode.inputs['context']:,} tokens x {decode.inputs['batch_size']} reaches "
        f"{before:.0%} with all scores written out, {share(decode, 'gathered'):.0%} with pages gathered first and "
        f"{after:.0%} in tiles; prefill {share(prefill, 'naive'):.0%} and {best:.0%} of its FLOP/s",
        verdict=RIGHT if before <= 0.25 and after >= 0.75 else WRONG,
        why="Decode writes few scores, so tiles gain it little; prefill moves "
        f"{moved(prefill, 'naive'):.0f}x the bytes without them. Pages that are gathered move three times.",
        shown_by=(f"{MEASURE} kernels.json",),
    )


def moved(case: KernelCase, name: str) -> float:
    """Bytes that this way moves, of those that must move."""
    return next(peer.moved_bytes or 0 for peer in case.peers if peer.name == name) / case.bytes.moved


def tiers() -> Claim:
    document = read_document(REPORTS / "cpu-tiers" / "tiers.json", TiersDocument)
    speeds = document.up_gbps
    token_bytes = 131072  # of Llama-3.1-8B
    times = {name: 1e3 * 4096 * token_bytes / (gbps * 1e9) for name, gbps in speeds.items()}
    return Claim(
        said="Offloaded caches come back in a few ms from DRAM and in tens of ms from an SSD",
        found=f"measured, {speeds['dram']:.1f} and {speeds['disk']:.1f} GB/s: 4,096 tokens of Llama-3.1-8B would take "
        f"{times['dram']:.0f} and {times['disk']:.0f} ms",
        verdict=RIGHT if times["dram"] < 10 <= times["disk"] < 100 else WRONG,
        why="Few ms need PCIe 5 and pinned memory, or few tokens: this is a virtual machine's memory and disk.",
        shown_by=("kvtool tiers --out cpu-tiers",),
    )


def compute_saved() -> Claim:
    model = resolve_model("llama-3.1-8b")
    saved = {length: _saved(length, length) for length in (8, 128, 4096)}
    told = ", ".join(f"{times:,.0f}x for {length:,} tokens and as many more" for length, times in saved.items())
    return Claim(
        said="A cache saves 5x to 100x of the computing",
        found=f"{model.id.rpartition('/')[2]}: {told}",
        verdict=RIGHT if all(5 <= times <= 100 for times in saved.values()) else WRONG,
        why="Without one each token computes all before it: the saving grows with the length, and has no end.",
        shown_by=("python examples/claims/runs.py", "prefill_flops(model, L + i) over decode_flops(model, [L + i])"),
    )


def _saved(prompt: int, answer: int) -> float:
    """FLOPs of a prompt and its answer without a cache over those with one."""
    model = resolve_model("llama-3.1-8b")
    lengths = range(prompt + 1, prompt + answer, max(1, answer // 64))
    without = sum(prefill_flops(model, length) or 0 for length in lengths)
    kept = sum(decode_flops(model, [length]) or 0 for length in lengths)
    first = (prefill_flops(model, prompt) or 0) * len(lengths) / (answer - 1)
    return (first + without) / (first + kept)


def latency_saved() -> Claim:
    measured = steps(recorded("decode.json"))
    told = ", ".join(f"{step.speedup:.0f}x at {step.context:,} tokens" for step in measured)
    return Claim(
        said="A cache makes a token 10x to 100x as fast",
        found=told,
        verdict=RIGHT if all(10 <= step.speedup <= 100 for step in measured) else WRONG,
        why="As is said up to some 1,000 tokens, and far more beyond: a step reads the cache, but does not compute it.",
        shown_by=(f"{MEASURE} decode.json",),
    )


if __name__ == "__main__":
    for claim in run_claims():
        print(f"{claim.said}: {claim.verdict}, {claim.found}")
