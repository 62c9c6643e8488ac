"""Bench documents compared: tables, findings in words, a chart of ratios, and one page of HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvtool.report import html
from kvtool.report.cells import DASH
from kvtool.report.charts import COLOURS, GREY, literal, new_figure, ratio_axis
from kvtool.report.tables import Table, to_html
from kvtool.results import CompareDocument, CompareRow
from kvtool.units import format_bytes, format_ms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {
    "ttft_ms": "TTFT",
    "tpot_ms": "TPOT",
    "itl_ms": "ITL",
    "e2e_ms": "E2E",
    "prefill_tokens_per_s": "prefill",
    "decode_tokens_per_s": "decode",
    "mbu": "MBU",
    "kv_allocated_bytes": "KV allocated",
    "peak_bytes": "peak memory",
    "kl_mean": "KL",
    "perplexity": "perplexity",
    "top1_agreement": "same top 1",
    "used_ratio": "pool used",
    "largest_batch": "largest batch",
    "steps": "steps",
}
CHARTED = ("ttft_ms", "tpot_ms", "e2e_ms")
UNREMARKABLE = ("same", "no difference shown", "within the error of these texts")
UNSURE = "cannot tell"
BETTER, WORSE = ("faster", "higher", "less"), ("slower", "lower", "more")
MAX_LINES = 60
EQUAL_SPEED = "*"  # behind a ratio that is at an equal speed of the device
ROW_HEIGHT_IN = 0.26


def compare_html(document: CompareDocument, chart: bytes, command: str = "") -> str:
    """The whole comparison as one page that needs no network; all rows, however many."""
    names = ", ".join(_documents(document))
    return html.page(
        "Benchmarks compared",
        f"{names} against {document.baseline}",
        [
            html.warnings(document.warnings),
            html.made_of(command, ("compare.json", "compare.csv", "compare.png")),
            html.key_points(findings(document)),
            html.section("Chart", [html.charts({f"Ratio of each timing to {document.baseline}": chart})]),
            html.section(
                "Tables", [to_html(table) for table in compare_tables(document, max_lines=len(document.rows))]
            ),
            html.section("Assumptions", [html.bullets(document.assumptions)]),
        ],
    )


def findings(document: CompareDocument) -> list[str]:
    """For each document how many metrics are better or worse, and the largest change of a timing."""
    sentences = []
    for name in _documents(document):
        rows = [row for row in document.rows if row.document == name]
        words = Counter(word for row in rows for word in row.verdict.split())
        better, worse = (sum(words[word] for word in side) for side in (BETTER, WORSE))
        unremarkable = sum(row.verdict in UNREMARKABLE for row in rows)
        unsure = sum(row.verdict.startswith(UNSURE) for row in rows)
        metrics = "metric" if better == 1 else "metrics"
        sentence = f"{name}: {better} {metrics} better, {worse} worse, {unremarkable} without a difference"
        sentence += f", {unsure} that these runs cannot tell" if unsure else ""
        changed = [row for row in rows if row.unit == "ms" and row.judged_ratio and _is_shown(row)]
        if changed:
            largest = max(changed, key=lambda row: abs((row.judged_ratio or 1) - 1))
            sentence += f"; the largest change is {NAMES[largest.metric]} of {largest.case}, {largest.verdict}"
        sentences.append(sentence)
    return sentences


def _is_shown(row: CompareRow) -> bool:
    return not {*BETTER, *WORSE}.isdisjoint(row.verdict.split())


def widest_interval(document: CompareDocument) -> str | None:
    """The comparison that is least sure: the metric whose interval is widest for its ratio."""
    rows = [(_halfwidth(row), row) for row in document.rows if row.ci_low is not None and row.judged_ratio]
    if not rows:
        return None
    halfwidth, row = max(rows, key=lambda item: item[0])
    return f"the noise of {NAMES.get(row.metric, row.metric)} in {row.case}: its interval is {halfwidth:.1%} either way"


def _halfwidth(row: CompareRow) -> float:
    """Half of the interval's width, as a share of the ratio."""
    return ((row.ci_high or 0.0) - (row.ci_low or 0.0)) / 2 / (row.judged_ratio or 1.0)


def _documents(document: CompareDocument) -> list[str]:
    return list(dict.fromkeys(row.document for row in document.rows))


def compare_tables(document: CompareDocument, max_lines: int = MAX_LINES) -> list[Table]:
    """A table for each document. One of more than `max_lines` rows keeps those that show a difference, and says so."""
    tables = []
    for name in _documents(document):
        rows = [row for row in document.rows if row.document == name]
        shown = rows if len(rows) <= max_lines else [row for row in rows if row.verdict not in UNREMARKABLE]
        tables.append(_document_table(shown, len(rows) - len(shown), f"{name} against {document.baseline}"))
    return tables


def _document_table(rows: Sequence[CompareRow], num_hidden: int, title: str) -> Table:
    hidden = f" {num_hidden} more rows show no difference (all are in --json and --out)." if num_hidden else ""
    lines: list[tuple[str, ...]] = []
    case = None
    for row in rows:
        if row.case != case:
            case = row.case
            lines.append((case, "", "", "", "", ""))
        lines.append(_cells(row))
    if not rows:
        lines.append(("nothing differs", "", "", "", "", ""))
    return Table(
        title=title,
        columns=("metric", "baseline", "this", "ratio", "interval", "verdict"),
        rows=lines,
        labels=1,
        spare=("baseline", "this", "interval"),
        note=f"Medians; ratio is this / baseline with its 95 % interval.{_equal_speed_note(rows)}{hidden}",
    )


def _equal_speed_note(rows: Sequence[CompareRow]) -> str:
    speeds = dict.fromkeys(row.speed for row in rows if row.speed)
    return f" {EQUAL_SPEED} at equal {' and '.join(speeds)}, measured beside each iteration." if speeds else ""


def _cells(row: CompareRow) -> tuple[str, ...]:
    return (
        f"  {NAMES.get(row.metric, row.metric)}",
        format_value(row.a, row.unit),
        format_value(row.b, row.unit),
        DASH if row.judged_ratio is None else f"{row.judged_ratio:.3f}{EQUAL_SPEED if row.speed else ''}",
        DASH if row.ci_low is None else f"{row.ci_low:.3f}..{row.ci_high:.3f}",
        row.verdict,
    )


def format_value(value: float | None, unit: str) -> str:
    """A metric's value with its unit, short enough for a column."""
    if value is None:
        return DASH
    if unit == "bytes":
        return format_bytes(round(value))
    if unit == "ms":
        return f"{format_ms(value)} ms"
    if unit in ("nats", ""):
        return f"{value:.2e}" if unit else f"{value:.2f}"
    if unit in ("requests", "steps"):
        return f"{value:,.0f}"
    return f"{value:.1%}" if unit == "ratio" else f"{value:,.1f}/s" if value < 100 else f"{value:,.0f}/s"


def compare_figure(document: CompareDocument) -> Figure:
    """Each timing's ratio to the baseline's with its interval: a panel per metric, a line per case and document."""
    metrics = [name for name in CHARTED if any(row.metric == name and row.ratio for row in document.rows)] or ["e2e_ms"]
    cases = list(dict.fromkeys(row.case for row in document.rows))
    names = _documents(document)
    height_in = 1.6 + ROW_HEIGHT_IN * max(4, len(cases) * len(names))
    title = f"Time against {_short(document.baseline)}"
    figure, panels = new_figure(title, panels=len(metrics), width_in=11, height_in=height_in)
    for axes, metric in zip(panels, metrics, strict=True):
        for place, name in enumerate(names):
            rows = {row.case: row for row in document.rows if row.metric == metric and row.document == name}
            offset = (place + 1) / (len(names) + 1) - 0.5
            _draw_ratios(axes, rows, cases, offset, COLOURS[place % len(COLOURS)], literal(_short(name)))
        _finish_panel(axes, metric, cases, labelled=axes is panels[0])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _short(path: str) -> str:
    """The folder and file of a document's path: `base/bench.json`."""
    return "/".join(Path(path).parts[-2:])


def _draw_ratios(
    axes: Axes, rows: dict[str, CompareRow], cases: Sequence[str], offset: float, colour: str, name: str
) -> None:
    """Dots at the ratios and bars over their intervals, one document's in one colour."""
    dots: list[tuple[float, float]] = []
    for place, case in enumerate(cases):
        row = rows.get(case)
        if row is None or row.judged_ratio is None:
            continue
        dots.append((row.judged_ratio, place + offset))
        if row.ci_low is not None and row.ci_high is not None:
            axes.hlines(place + offset, row.ci_low, row.ci_high, colour, linewidth=2)
    axes.plot([x for x, _ in dots], [y for _, y in dots], "o", color=colour, markersize=5, label=name)


def _finish_panel(axes: Axes, metric: str, cases: Sequence[str], *, labelled: bool) -> None:
    axes.axvline(1, color=GREY, linewidth=1)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.set_yticks(range(len(cases)), [literal(case) for case in cases] if labelled else [""] * len(cases))
    ratio_axis(axes, "faster <- 1x -> slower, log scale")
    axes.set_title(NAMES[metric], fontsize=10, loc="left")
