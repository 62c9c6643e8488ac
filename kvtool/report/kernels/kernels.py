"""A kernels document out: a table for each kind of kernel, one row a case as CSV, a chart. Reads results only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from kvtool.report.bench.tables import DASH, percent
from kvtool.report.cases import case_rows, case_title, shared_inputs, varying_inputs
from kvtool.report.charts import COLOURS, GREY, EndLabel, label_ends, new_figure, tokens_axis
from kvtool.report.files import write_result
from kvtool.report.kernels.peers import (
    draw_peers,
    peer_columns,
    peer_lines,
    peer_names,
    ratio_cell,
    with_peers,
)
from kvtool.report.tables import Table, to_rich
from kvtool.results import KernelCase, KernelRoofline, KernelsDocument
from kvtool.results.warnings import load_warnings, throttle_warnings
from kvtool.units import format_bytes_short, format_length, format_ms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console

# Inputs that tell one variant of a kernel from another where they vary, and are told once above the tables elsewhere.
VARIANTS = ("model", "layer", "dtype", "kv_cache_dtype", "block_size")
SHARED_INPUTS = (*VARIANTS, "backend", "device", "threads", "num_iters")
HEADINGS = {
    "kv_cache_dtype": "cache",
    "block_size": "page",
    "context": "ctx",
    "batch_size": "batch",
    "query_len": "new\ntokens",
    "flashinfer": "flash\ninfer",
    "flash-attn": "flash\nattn",
    "vllm-triton": "vllm\ntriton",
    "sglang-triton": "sglang\ntriton",
}
SHOW_MS_FROM = 10.0  # a table with a longer time than this is in milliseconds


def print_kernels(document: KernelsDocument, console: Console) -> None:
    """What ran, a table for each kind of kernel, and what was assumed."""
    from rich.text import Text

    console.print(Text(shared_inputs(document.cases, SHARED_INPUTS), style="dim"))
    for table in kernel_tables(document):
        console.print()
        console.print(to_rich(table, console.width))
    for line in peer_lines(with_peers(document.cases)):
        console.print(Text(f"- {line}"))
    if cold := cold_start(document.cases):
        console.print(Text(f"- {cold}", style="dim"))
    warnings = [*load_warnings(document.environment), *throttle_warnings(document.cases)]
    for assumption in document.assumptions:
        console.print(Text(f"- {assumption}", style="yellow" if assumption in warnings else "dim"))


def cold_start(cases: Sequence[KernelCase]) -> str:
    """The longest first call and the longest capture, which no time above holds; empty where nothing was recorded."""
    first_s = max((case.cold_start.first_call_s or 0.0 for case in cases), default=0.0)
    capture_s = max((case.cold_start.capture_s or 0.0 for case in cases), default=0.0)
    captures = f", capturing a graph up to {format_ms(1e3 * capture_s)} ms" if capture_s else ""
    return (
        f"cold start, in no time above: a first call took up to {format_ms(1e3 * first_s)} ms{captures}"
        if first_s
        else ""
    )


def write_kernels(document: KernelsDocument, directory: Path) -> list[Path]:
    """kernels.json, .csv and .png in `directory`; the paths written. Raises KvtoolError."""
    peers = peer_columns(document.cases)
    rows = [row | columns for row, columns in zip(case_rows(document.cases), peers, strict=True)]
    return write_result(directory, "kernels", document, rows=rows, figure=kernels_figure(document))


def kernel_tables(document: KernelsDocument) -> list[Table]:
    """Every table that the document has cases for."""
    tables = (
        (stream_table, ("context", "batch_size"), cases_of(document, "decode")),
        (prefill_table, ("context", "query_len"), cases_of(document, "prefill")),
        (stream_table, ("batch_size", "query_len"), cases_of(document, "store")),
    )
    shown = [table(cases, keys) for table, keys, cases in tables if cases]
    raced = [(table_keys, with_peers(cases)) for _, table_keys, cases in tables]
    return shown + [peers_table(cases, keys) for keys, cases in raced if cases]


def cases_of(document: KernelsDocument, part: str) -> list[KernelCase]:
    """The cases of one part: decode, prefill or store."""
    return [case for case in document.cases if part in case.kernel]


def stream_table(cases: Sequence[KernelCase], keys: tuple[str, ...]) -> Table:
    """Kernels that move bytes: GB/s next to what the device can read."""
    unit = time_unit(cases)
    measured = rate(cases[0].roofline.read_gbps_measured or 0.0)
    figures = [
        (
            format_bytes_short(case.bytes.kv_read + case.bytes.kv_written),
            *times(case, unit),
            rate(case.metrics.gbps),
            percent(case.roofline.mbu),
            agreement(case),
        )
        for case in cases
    ]
    note = f"% of read: of the {measured} GB/s that this device read in the same run."
    return labelled(
        cases,
        keys,
        columns=("KV", f"{unit}\np50", f"{unit}\np90", "GB/s", "% of\nread", "max\ndiff"),
        figures=figures,
        note=" ".join([note, *reasons(cases)]),
    )


def prefill_table(cases: Sequence[KernelCase], keys: tuple[str, ...]) -> Table:
    """Kernels that compute: TFLOP/s next to a matrix product's."""
    unit = time_unit(cases)
    measured = rate(cases[0].roofline.tflops_measured or 0.0)
    figures = [
        (
            *times(case, unit),
            rate(case.metrics.tflops or 0.0),
            percent(case.roofline.mfu),
            agreement(case),
        )
        for case in cases
    ]
    return labelled(
        cases,
        keys,
        columns=(f"{unit}\np50", f"{unit}\np90", "TFLOP\n/s", "% of\nmatmul", "max\ndiff"),
        figures=figures,
        note=f"The last tokens of a context, over all of it. % of matmul: of the {measured} TFLOP/s that "
        "a matrix product reached in the same run.",
    )


def peers_table(cases: Sequence[KernelCase], keys: tuple[str, ...]) -> Table:
    """Times of other libraries' kernels as multiples of ours, a column a peer."""
    names = peer_names(cases)
    rounds = sorted({len(case.samples_s) for case in cases})
    return labelled(
        cases,
        keys,
        columns=tuple(HEADINGS.get(name, name) for name in names),
        figures=[tuple(ratio_cell(case, name) for name in names) for case in cases],
        note=f"Median time of each / ours over {' or '.join(map(str, rounds))} rounds in turns, on the same pages: "
        f"above 1.00x ours is faster. {DASH}: not timed, see below.",
        title=f"peers of {' and '.join(sorted({case.kernel for case in cases}))}",
    )


def labelled(
    cases: Sequence[KernelCase],
    keys: tuple[str, ...],
    *,
    columns: tuple[str, ...],
    figures: Sequence[tuple[str, ...]],
    note: str,
    title: str | None = None,
) -> Table:
    """The figures behind what tells their cases apart: the variant, where there are several, then `keys`."""
    variant = varying_inputs(cases, VARIANTS)
    names = [" ".join(cells(case, variant)) for case in cases]
    labels = [((name,) if variant else ()) + cells(case, keys) for name, case in zip(names, cases, strict=True)]
    heading = (" ".join(HEADINGS.get(key, key) for key in variant),) if variant else ()
    return Table(
        title=title or " and ".join(sorted({case.kernel for case in cases})),
        columns=heading + tuple(HEADINGS[key] for key in keys) + columns,
        rows=[label + row for label, row in zip(labels, figures, strict=True)],
        labels=len(heading) + len(keys),
        note=f"{'ctx: tokens a sequence. ' if 'context' in keys else ''}"
        f"{'' if title else 'max diff: from the reference kernels. '}{note}",
    )


def cells(case: KernelCase, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(cell(key, case.inputs[key]) for key in keys)


def cell(key: str, value: str | int | float | bool | None) -> str:
    """Lengths as people write them: 32k."""
    return format_length(value) if key in ("context", "query_len") and isinstance(value, int) else str(value)


def rate(per_second: float) -> str:
    """Three digits, all of those before the point, and no more than three behind it."""
    digits = 0 if per_second >= 100 else 1 if per_second >= 10 else 2 if per_second >= 1 else 3
    return f"{per_second:,.{digits}f}"


def time_unit(cases: Sequence[KernelCase]) -> str:
    return "ms" if max(case.metrics.time_ms.p50 for case in cases) >= SHOW_MS_FROM else "µs"


def times(case: KernelCase, unit: str) -> tuple[str, str]:
    time_ms, factor = case.metrics.time_ms, 1.0 if unit == "ms" else 1e3
    return format_ms(factor * time_ms.p50), format_ms(factor * time_ms.p90)


def agreement(case: KernelCase) -> str:
    """The largest difference from the reference kernels; WRONG where rounding does not explain it."""
    check = case.check
    difference = "not finite" if check.max_abs_diff is None else f"{check.max_abs_diff:.0e}"
    return difference if check.outputs_equal else f"WRONG {difference}"


def reasons(cases: Sequence[KernelCase]) -> list[str]:
    """Why a share is missing, each reason once."""
    return [f"{DASH}: {reason}." for reason in sorted({c.roofline.reason for c in cases if c.roofline.reason})]


@dataclass(frozen=True)
class Panel:
    """What one axes shows: a value of each case against context, under the device's own `limit`."""

    label: str
    points: list[tuple[KernelCase, float]]
    limit: tuple[str, float]


def kernels_figure(document: KernelsDocument) -> Figure:
    """Decode's GB/s and prefill's TFLOP/s against context, under what the device reached in the same run."""
    panels = [panel for panel in kernel_panels(document) if panel.points]
    compared = [case for case in document.cases if any(peer.ratio is not None for peer in case.peers)]
    subtitle = shared_inputs(document.cases, (*VARIANTS[1:], "backend"))
    figure, axes = new_figure(
        case_title("kernels", document.cases, document.environment),
        subtitle=subtitle,
        panels=max(1, len(panels) + bool(compared)),
        width_in=18.0 if compared else 11.5,
        height_in=max(5.4, 2.0 + 0.22 * len(compared)),
    )
    for axis, panel in zip(axes, panels, strict=False):
        draw(figure, axis, panel)
    if compared:
        draw_peers(axes[-1], compared)
    return figure


def kernel_panels(document: KernelsDocument) -> list[Panel]:
    decode, prefill = cases_of(document, "decode"), cases_of(document, "prefill")
    roofline = document.cases[0].roofline if document.cases else KernelRoofline()
    return [
        Panel(
            "decode, GB/s",
            [(case, case.metrics.gbps) for case in decode],
            ("measured read", roofline.read_gbps_measured or 0.0),
        ),
        Panel(
            "prefill, TFLOP/s",
            [(case, case.metrics.tflops or 0.0) for case in prefill],
            ("measured matmul", roofline.tflops_measured or 0.0),
        ),
    ]


def lines_of(panel: Panel) -> dict[str, list[tuple[int, float]]]:
    """Points of growing context under the name of what they share."""
    variant = varying_inputs([case for case, _ in panel.points], VARIANTS)
    several_batches = len({case.inputs["batch_size"] for case, _ in panel.points}) > 1
    lines: dict[str, list[tuple[int, float]]] = {}
    for case, value in panel.points:
        names = [*cells(case, variant), *([f"batch {case.inputs['batch_size']}"] if several_batches else [])]
        lines.setdefault(" ".join(names), []).append((int(case.inputs["context"] or 0), value))
    return {name: sorted(line) for name, line in lines.items()}


def draw(figure: Figure, axes: Axes, panel: Panel) -> None:
    """A line for each variant and batch size, and the measured limit dashed above them."""
    ends = []
    for colour, (name, line) in zip(cycle(COLOURS), lines_of(panel).items(), strict=False):
        axes.plot(*zip(*line, strict=True), color=colour, marker="o", markersize=4)
        ends.append(EndLabel(*line[-1], ": ".join(filter(None, (name, rate(line[-1][1])))), colour))
    contexts = sorted({int(case.inputs["context"] or 0) for case, _ in panel.points})
    name, limit = panel.limit
    axes.axhline(limit, color=GREY, linestyle="--", linewidth=1)
    ends.append(EndLabel(contexts[-1], limit, f"{name}: {rate(limit)}", GREY))
    tokens_axis(axes)
    axes.set_xticks(contexts)
    axes.set_ylim(0, 1.1 * max([limit, *(value for _, value in panel.points)]))
    axes.set_xlabel("context, tokens a sequence")
    axes.set_ylabel(panel.label)
    label_ends(figure, axes, ends)
