"""The accuracy part of a bench document: what each format costs on the text, and in which layers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from kvtool.report.cells import DASH, percent
from kvtool.report.tables import Table
from kvtool.results import AccuracyCase, BenchDocument, CacheSpeed
from kvtool.results.cases.accuracy import worst_layers
from kvtool.units import format_bytes, format_length, format_ms

SPARSE = ("streaming", "quest")


def accuracy_cases(document: BenchDocument) -> list[AccuracyCase]:
    """In the order in which formats were named."""
    return [case for case in document.cases if isinstance(case, AccuracyCase)]


def plain_cases(document: BenchDocument) -> list[AccuracyCase]:
    """Those of every format with no layer left whole."""
    return [case for case in accuracy_cases(document) if not whole_layers(case)]


def spared_cases(document: BenchDocument) -> list[tuple[AccuracyCase, AccuracyCase]]:
    """Those with layers left whole, each beside its format's own."""
    plain = {_asked(case): case for case in plain_cases(document)}
    cases = [case for case in accuracy_cases(document) if whole_layers(case)]
    return [(case, plain[_asked(case)]) for case in cases if _asked(case) in plain]


def _asked(case: AccuracyCase) -> tuple[object, object]:
    return case.inputs.get("kv_cache_dtype"), case.inputs.get("input_len")


def accuracy_tables(document: BenchDocument) -> list[Table]:
    """None where no caches were compared."""
    cases, spared = plain_cases(document), spared_cases(document)
    timed = [case for case in cases if case.accuracy.speed is not None]
    costs = [cost_table(cases), error_table(cases)] if cases else []
    return costs + ([spared_table(spared)] if spared else []) + ([speed_table(timed)] if timed else [])


def whole_layers(case: AccuracyCase) -> str:
    """`0, 29`, the layers that keep the run's own cache; empty for none."""
    return str(case.inputs.get("skip_layers") or "").replace(",", ", ")


def label(case: AccuracyCase) -> str:
    """`int4, hadamard`."""
    found = case.accuracy
    return found.kv_cache_dtype + (f", {found.method}" if found.method else "")


def with_se(value: float, se: float | None) -> str:
    """`1.40 ± 0.34`."""
    return f"{value:.2f}" if se is None else f"{value:.2f} ± {se:.2f}"


def small_with_se(value: float, se: float | None) -> str:
    """`7.0e-04 ± 6e-05`."""
    return f"{value:.1e}" if se is None else f"{value:.1e} ± {se:.0e}"


def short(verdict: str) -> str:
    """What a verdict comes to, in a word or two."""
    if verdict.startswith("not distinguishable"):
        return "no loss shown"
    return "too little text" if verdict.startswith("nothing") else verdict


def cost_table(cases: Sequence[AccuracyCase]) -> Table:
    """Bytes, and what they cost in the next token."""
    rows = [
        (
            label(case),
            format_bytes(found.kv_bytes_per_token),
            with_se(found.perplexity_change, found.perplexity_change_se),
            small_with_se(found.kl_mean, found.kl_mean_se),
            f"{found.kl_p99:.2g}",
            percent(found.top1_agreement, digits=1),
            f"{found.greedy_agreement_tokens:.1f}",
            short(found.verdict),
        )
        for case in cases
        for found in [case.accuracy]
    ]
    first = cases[0].accuracy
    return Table(
        title="What smaller caches cost",
        columns=("cache", "a token", "perplexity\nadded", "KL", "KL p99", "same\ntop 1", "greedy\nagrees", "verdict"),
        rows=rows,
        labels=1,
        spare=("KL p99", "greedy\nagrees", "same\ntop 1", "a token"),
        note=f"Beside a {first.reference} cache, whose perplexity is {first.reference_perplexity:.2f}, on the same "
        f"{first.tokens:,} tokens of text {first.text_sha256[:8]}. ±: standard error. KL: of the next token's "
        f"distribution, in nats. greedy agrees: tokens until greedy text parts, of {first.greedy_tokens}. no loss "
        f"shown: not distinguishable from {first.reference} at this sample.",
    )


def error_table(cases: Sequence[AccuracyCase]) -> Table:
    """Where the error is: K, V and attention, and the layers that have most of it."""
    rows = [
        (
            label(case),
            *(mean_percent(errors) for errors in (found.key_error, found.value_error, found.attention_error)),
            ", ".join(map(str, worst_layers(found.attention_error))) or DASH,
        )
        for case in cases
        for found in [case.accuracy]
    ]
    return Table(
        title="What smaller caches cost: by layer",
        columns=("cache", "K off", "V off", "attention\noff", "most in layers"),
        rows=rows,
        labels=1,
        note="|x - reference| / |reference| of what is stored, and of attention over it, mean over layers; each layer "
        "on its own, given the reference's queries, keys and values.",
    )


def spared_table(pairs: Sequence[tuple[AccuracyCase, AccuracyCase]]) -> Table:
    """What it buys to leave layers whole, and what it costs."""
    rows = [
        (
            label(own),
            whole_layers(case),
            f"+{percent(more_bytes(case, own))}",
            small_with_se(case.accuracy.kl_mean, case.accuracy.kl_mean_se),
            percent(kl_share(case, own)),
            with_se(case.accuracy.perplexity_change, case.accuracy.perplexity_change_se),
            short(case.accuracy.verdict),
        )
        for case, own in pairs
    ]
    first = pairs[0][0].accuracy
    return Table(
        title="What smaller caches cost: with layers left whole",
        columns=("cache", "left whole", "a token", "KL", "KL less", "perplexity\nadded", "verdict"),
        rows=rows,
        labels=2,
        spare=("perplexity\nadded",),
        note=f"Those layers keep {first.reference}: what that adds to a token's bytes, and what it takes off the KL of "
        "the same format with no layer left whole, on the tokens that both read.",
    )


def more_bytes(case: AccuracyCase, own: AccuracyCase) -> float:
    """Of a token's, as a share of the format's own."""
    return case.accuracy.kv_bytes_per_token / own.accuracy.kv_bytes_per_token - 1


def kl_share(case: AccuracyCase, own: AccuracyCase) -> float:
    """Of the format's own KL, what is gone; 0 where the document does not say."""
    saved, left = case.accuracy.kl_saved or 0.0, case.accuracy.kl_mean
    return saved / (saved + left) if saved + left > 0 else 0.0


def speed_table(cases: Sequence[AccuracyCase]) -> Table:
    """What each format's decode steps take over contexts, beside the reference's, and from where it is faster."""
    speeds = [case.accuracy.speed for case in cases if case.accuracy.speed is not None]
    first = longest_timed(speeds)
    ends = [f"ITL at\n{format_length(context)}" for context in (first.contexts[0], first.contexts[-1])]
    reference = (
        cases[0].accuracy.reference,
        format_bytes(first.reference_held_bytes[-1]),
        *(format_ms(median(first.reference_itl_ms[at])) for at in (0, -1)),
        with_se(first.reference_slope_us_per_token, first.reference_slope_us_per_token_se),
        _micro(first.reference_store_us_per_token),
        "",
    )
    rows = [
        (
            label(case),
            format_bytes(speed.held_bytes[-1]),
            *(format_ms(median(speed.itl_ms[at])) for at in (0, -1)),
            with_se(speed.slope_us_per_token, speed.slope_us_per_token_se),
            _micro(speed.store_us_per_token),
            speed.pays,
        )
        for case, speed in zip(cases, speeds, strict=True)
    ]
    held = f"held at\n{format_length(first.contexts[-1])}"
    return Table(
        title="What smaller caches cost: in time",
        columns=("cache", held, *ends, "µs a token\nof context", "µs to store\na token", "faster"),
        rows=[reference, *rows],
        labels=1,
        spare=("µs to store\na token", held),
        note=f"ITL: ms of a decode step of one sequence in {first.dtype}, the median over "
        f"{_turns(speeds)} turns with all formats in turn. ±: standard error of the slope.",
    )


def longest_timed(speeds: Sequence[CacheSpeed]) -> CacheSpeed:
    """The one with the most turns, which tells most of the reference."""
    return max(speeds, key=lambda speed: len(speed.itl_ms[-1]))


def _turns(speeds: Sequence[CacheSpeed]) -> str:
    """`13`, or `4 to 40` where formats left their turns to others."""
    turns = [len(speed.itl_ms[-1]) for speed in speeds]
    return f"{min(turns)} to {max(turns)}" if min(turns) < max(turns) else f"{max(turns)}"


def _micro(value: float | None) -> str:
    return DASH if value is None else f"{value:.3g}"


def mean_percent(errors: Sequence[float]) -> str:
    return percent(sum(errors) / len(errors), digits=2) if errors else DASH


def accuracy_findings(document: BenchDocument) -> list[str]:
    """What each verdict comes to, the formats of one verdict in one sentence; what layers left whole buy; and time."""
    cases, spared = plain_cases(document), spared_cases(document)
    verdicts = dict.fromkeys(case.accuracy.verdict for case in cases)
    costs = [_finding(said, [case for case in cases if case.accuracy.verdict == said]) for said in verdicts]
    layers = [_left_whole(case, own) for case, own in spared]
    words = [f"{label(case)} {case.accuracy.speed.pays}" for case in cases if case.accuracy.speed is not None]
    costs += [f"The layers that do most damage, left whole: {'; '.join(layers)}."] if layers else []
    return costs + ([f"In time: {'; '.join(words)}.", _most(cases), *why(cases)] if words else [])


def _left_whole(case: AccuracyCase, own: AccuracyCase) -> str:
    """`int4 loses 41% less with 13, 19 and 26, which take 24% more bytes`."""
    said = short(case.accuracy.verdict)
    now = "" if said == short(own.accuracy.verdict) else f" ({said})"
    return (
        f"{label(own)} has {percent(kl_share(case, own))} less KL with layers {whole_layers(case)}{now}, for "
        f"{percent(more_bytes(case, own))} more bytes"
    )


def _most(cases: Sequence[AccuracyCase]) -> str:
    """How many times as long as the reference's a step of each format takes at worst, and at which context."""
    found = []
    for case in cases:
        if (speed := case.accuracy.speed) is not None:
            ratios = [
                median(a / b for a, b in zip(own, other, strict=True))
                for own, other in zip(speed.itl_ms, speed.reference_itl_ms, strict=True)
            ]
            at = format_length(speed.contexts[ratios.index(max(ratios))])
            found.append(f"{label(case)} {max(ratios):.2f} (at {at})")
    return f"A step takes at most so many times as long as one of {cases[0].accuracy.reference}: {'; '.join(found)}."


def why(cases: Sequence[AccuracyCase]) -> list[str]:
    """What of a step a smaller cache can save at all, and how fast each format's bytes are read; sparse caches, which
    do not read all of them, are left out."""
    timed = [(case, case.accuracy.speed) for case in cases if case.accuracy.speed is not None]
    first = longest_timed([speed for _, speed in timed])
    at = format_length(first.contexts[-1])
    step_ms, read_ms = median(first.reference_itl_ms[-1]), first.reference_slope_us_per_token * first.contexts[-1] / 1e3
    reference = timed[0][0].accuracy.reference
    if not 0 < read_ms < step_ms:
        return []
    rates = {reference: gbps(first.reference_held_bytes[-1], first.contexts[-1], first.reference_slope_us_per_token)}
    for case, speed in timed:
        if speed.slope_us_per_token > 0 and not any(way in label(case) for way in SPARSE):
            rates[label(case)] = gbps(speed.held_bytes[-1], speed.contexts[-1], speed.slope_us_per_token)
    limit = timed[0][0].roofline.read_gbps_measured
    device = "" if limit is None else f", where this device reads {limit:.3g} GB/s"
    return [
        f"Why: at {at} tokens {percent(read_ms / step_ms)} of a {reference} step ({format_ms(read_ms)} of "
        f"{format_ms(step_ms)} ms) goes with the context, and the rest with products that every format has: a cache of "
        f"half the bytes can save {percent(read_ms / step_ms / 2)} at most. It is read at "
        f"{'; '.join(f'{rate:.2g} GB/s ({name})' for name, rate in rates.items())}{device}."
    ]


def gbps(held_bytes: int, tokens: int, us_per_token: float) -> float:
    """That a cache's bytes pass attention at."""
    return held_bytes / tokens / us_per_token / 1e3


def _finding(said: str, cases: Sequence[AccuracyCase]) -> str:
    names = "; ".join(_figures(case) for case in cases)
    return f"{said[0].upper()}{said[1:]}: {names}."


def _figures(case: AccuracyCase) -> str:
    found = case.accuracy
    change = found.perplexity_change / found.reference_perplexity
    return f"{label(case)} (perplexity {100 * change:+.2g} %, KL {found.kl_mean:.1e})"
