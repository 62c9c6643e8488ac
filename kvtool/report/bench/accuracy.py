"""The accuracy part of a bench document: what each format costs on the text, and in which layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from kvtool.report.cells import DASH, percent
from kvtool.report.charts import COLOURS, GREY, LABEL_POINTS, RED, literal, log_axis
from kvtool.report.tables import Table
from kvtool.results import Accuracy, AccuracyCase, BenchDocument
from kvtool.units import format_bytes, format_length, format_ms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WORST_LAYERS = 3
SPARSE = ("streaming", "quest")
SMALLEST_KL = 1e-7  # on a logarithmic axis
SMALLEST_ERROR = 1e-3  # of attention there: below a bf16's own rounding
CROWDED_WIDTH, CROWDED_HEIGHT = 0.25, 0.08  # of the points' range: what the name of a format takes of a panel


def accuracy_cases(document: BenchDocument) -> list[AccuracyCase]:
    """In the order in which formats were named."""
    return [case for case in document.cases if isinstance(case, AccuracyCase)]


def accuracy_tables(document: BenchDocument) -> list[Table]:
    """None where no caches were compared."""
    cases = accuracy_cases(document)
    timed = [case for case in cases if case.accuracy.speed is not None]
    costs = [cost_table(cases), error_table(cases)] if cases else []
    return costs + ([speed_table(timed)] if timed else [])


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
            ", ".join(map(str, worst_layers(found))) or DASH,
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


def speed_table(cases: Sequence[AccuracyCase]) -> Table:
    """What each format's decode steps take over contexts, beside the reference's, and from where it is faster."""
    speeds = [case.accuracy.speed for case in cases if case.accuracy.speed is not None]
    first = speeds[0]
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
        f"{len(first.itl_ms[-1])} turns with all formats in turn. ±: standard error of the slope.",
    )


def _micro(value: float | None) -> str:
    return DASH if value is None else f"{value:.3g}"


def mean_percent(errors: Sequence[float]) -> str:
    return percent(sum(errors) / len(errors), digits=2) if errors else DASH


def worst_layers(found: Accuracy) -> list[int]:
    """Those whose attention is off most, the worst first; none where nothing is."""
    errors = found.attention_error
    order = sorted(range(len(errors)), key=lambda layer: -errors[layer])
    return [layer for layer in order[:WORST_LAYERS] if errors[layer] > 0]


def accuracy_findings(document: BenchDocument) -> list[str]:
    """What each verdict comes to, the formats of one verdict in one sentence."""
    cases = accuracy_cases(document)
    verdicts = dict.fromkeys(case.accuracy.verdict for case in cases)
    costs = [_finding(said, [case for case in cases if case.accuracy.verdict == said]) for said in verdicts]
    words = [f"{label(case)} {case.accuracy.speed.pays}" for case in cases if case.accuracy.speed is not None]
    return costs + ([f"In time: {'; '.join(words)}.", *why(cases)] if words else [])


def why(cases: Sequence[AccuracyCase]) -> list[str]:
    """What of a step a smaller cache can save at all, and how fast each format's bytes are read; sparse caches, which
    do not read all of them, are left out."""
    timed = [(case, case.accuracy.speed) for case in cases if case.accuracy.speed is not None]
    first, at = timed[0][1], format_length(timed[0][1].contexts[-1])
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


def draw_cost(figure: Figure, axes: Axes, cases: Sequence[AccuracyCase]) -> None:
    """KL of each format over its bytes a token, its name beside the point; whiskers are two standard errors."""
    points = [(c.accuracy.kv_bytes_per_token / 1024, max(c.accuracy.kl_mean, SMALLEST_KL)) for c in cases]
    for index, (case, (kib, kl)) in enumerate(zip(cases, points, strict=True)):
        found = case.accuracy
        colour = RED if found.verdict == "collapses" else COLOURS[1] if found.verdict == "loses" else COLOURS[0]
        reach = min(2 * (found.kl_mean_se or 0.0), 0.9 * kl)
        axes.errorbar([kib], [kl], yerr=[[reach], [reach]], color=colour, marker="o", markersize=5, capsize=2)
        axes.annotate(
            literal(label(case)),
            (kib, kl),
            (-6, 3) if is_crowded(points, index) else (6, 3),
            textcoords="offset points",
            ha="right" if is_crowded(points, index) else "left",
            fontsize=LABEL_POINTS - 1,
        )
    log_axis(axes)
    axes.set_xlabel("KiB a token")
    axes.set_ylabel("KL, nats a token")
    axes.margins(x=0.28, y=0.15)


def is_crowded(points: Sequence[tuple[float, float]], index: int) -> bool:
    """Whether a name at the right of this point would run into another point or its name; of two at one place the
    first is."""
    width = CROWDED_WIDTH * (max(x for x, _ in points) - min(x for x, _ in points))
    height = CROWDED_HEIGHT * math.log(max(y for _, y in points) / min(y for _, y in points))
    x, y = points[index]
    return any(
        abs(math.log(other_y / y)) <= height and (0 < other_x - x <= width or (other_x == x and place > index))
        for place, (other_x, other_y) in enumerate(points)
    )


def draw_layers(figure: Figure, axes: Axes, cases: Sequence[AccuracyCase]) -> None:
    """Error of attention by layer, a line a format."""
    shown = [case for case in cases if case.accuracy.attention_error]
    for index, case in enumerate(shown):
        errors = [100 * max(error, SMALLEST_ERROR) for error in case.accuracy.attention_error]
        style = "-" if index < len(COLOURS) else "--"
        axes.plot(range(len(errors)), errors, style, color=COLOURS[index % len(COLOURS)], label=literal(label(case)))
    log_axis(axes)
    axes.set_xlabel("layer")
    axes.set_ylabel("attention off, %")
    legend_below(axes)


def draw_speed(figure: Figure, axes: Axes, cases: Sequence[AccuracyCase]) -> None:
    """ITL over context, a line a format; black: the reference."""
    speeds = [(label(case), case.accuracy.speed) for case in cases if case.accuracy.speed is not None]
    first, reference = speeds[0][1], cases[0].accuracy.reference
    for index, (name, speed) in enumerate(speeds):
        style = "-" if index < len(COLOURS) else "--"
        medians = [median(turns) for turns in speed.itl_ms]
        axes.plot(speed.contexts, medians, style, color=COLOURS[index % len(COLOURS)], marker=".", label=literal(name))
    medians = [median(turns) for turns in first.reference_itl_ms]
    axes.plot(first.contexts, medians, color="black", marker="o", markersize=4, label=literal(reference))
    log_axis(axes)
    axes.set_xticks(first.contexts, [format_length(context) for context in first.contexts])
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("a decode step, ms")
    legend_below(axes)


def legend_below(axes: Axes) -> None:
    """In three columns under the axis."""
    axes.legend(
        fontsize=LABEL_POINTS - 2, frameon=False, ncols=3, labelcolor=GREY, loc="upper left", bbox_to_anchor=(0, -0.16)
    )
