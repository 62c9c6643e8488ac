"""The accuracy part of a bench document: what each format costs on the text, and in which layers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from kvtool.report.cells import DASH, percent
from kvtool.report.charts import COLOURS, GREY, LABEL_POINTS, RED, literal
from kvtool.report.tables import Table
from kvtool.results import Accuracy, AccuracyCase, BenchDocument
from kvtool.units import format_bytes, format_length, format_ms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WORST_LAYERS = 3
SMALLEST_KL = 1e-7  # on a logarithmic axis


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
        f"{first.reference_slope_us_per_token:.2f}",
        _micro(first.reference_store_us_per_token),
        "",
    )
    rows = [
        (
            label(case),
            format_bytes(speed.held_bytes[-1]),
            *(format_ms(median(speed.itl_ms[at])) for at in (0, -1)),
            f"{speed.slope_us_per_token:.2f} ± {speed.slope_us_per_token_se:.2f}",
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
    return costs + ([f"In time: {'; '.join(words)}."] if words else [])


def _finding(said: str, cases: Sequence[AccuracyCase]) -> str:
    names = "; ".join(_figures(case) for case in cases)
    return f"{said[0].upper()}{said[1:]}: {names}."


def _figures(case: AccuracyCase) -> str:
    found = case.accuracy
    change = found.perplexity_change / found.reference_perplexity
    return f"{label(case)} (perplexity {100 * change:+.2g} %, KL {found.kl_mean:.1e})"


def draw_cost(figure: Figure, axes: Axes, cases: Sequence[AccuracyCase]) -> None:
    """KL of each format over its bytes a token, its name beside the point; whiskers are two standard errors."""
    for case in cases:
        found = case.accuracy
        colour = RED if found.verdict == "collapses" else COLOURS[1] if found.verdict == "loses" else COLOURS[0]
        kl, kib = max(found.kl_mean, SMALLEST_KL), found.kv_bytes_per_token / 1024
        reach = min(2 * (found.kl_mean_se or 0.0), 0.9 * kl)
        axes.errorbar([kib], [kl], yerr=[[reach], [reach]], color=colour, marker="o", markersize=5, capsize=2)
        axes.annotate(literal(label(case)), (kib, kl), (6, 3), textcoords="offset points", fontsize=LABEL_POINTS - 1)
    axes.set_yscale("log")
    axes.set_xlabel("KiB a token")
    axes.set_ylabel("KL, nats a token")
    axes.margins(x=0.2, y=0.15)


def draw_layers(figure: Figure, axes: Axes, cases: Sequence[AccuracyCase]) -> None:
    """Error of attention by layer, a line a format."""
    shown = [case for case in cases if case.accuracy.attention_error]
    for index, case in enumerate(shown):
        errors = [100 * max(error, SMALLEST_KL) for error in case.accuracy.attention_error]
        style = "-" if index < len(COLOURS) else "--"
        axes.plot(range(len(errors)), errors, style, color=COLOURS[index % len(COLOURS)], label=literal(label(case)))
    axes.set_yscale("log")
    axes.set_xlabel("layer")
    axes.set_ylabel("attention off, %")
    axes.legend(
        fontsize=LABEL_POINTS - 2, frameon=False, ncols=3, labelcolor=GREY, loc="upper left", bbox_to_anchor=(0, -0.16)
    )
