"""A kernels document out: a table for each kind of kernel, one row a case as CSV, a chart. Reads results only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from kvtool.report.bench_tables import DASH, percent
from kvtool.report.cases import case_rows, case_title, shared_inputs, varying_inputs
from kvtool.report.charts import COLOURS, GREY, EndLabel, label_ends, new_figure, tokens_axis
from kvtool.report.files import write_result
from kvtool.report.tables import Table, to_rich
from kvtool.results import KernelCase, KernelsDocument
from kvtool.units import format_bytes, format_length, format_ms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console

# Inputs that become a column where they vary, and are told once above the tables where they do not.
SHARED_INPUTS = ("model", "layer", "dtype", "kv_cache_dtype", "block_size", "backend", "device", "threads", "num_iters")
HEADINGS = {"kv_cache_dtype": "cache", "block_size": "page", "batch_size": "batch", "query_len": "new\ntokens"}
LENGTHS = ("context", "query_len")


def print_kernels(document: KernelsDocument, console: Console) -> None:
    """What ran, a table for each kind of kernel, and what was assumed."""
    from rich.text import Text

    console.print(Text(shared_inputs(document.cases, SHARED_INPUTS), style="dim"))
    for table in kernel_tables(document):
        console.print()
        console.print(to_rich(table, console.width))
    for assumption in document.assumptions:
        console.print(Text(f"- {assumption}", style="dim"))


def write_kernels(document: KernelsDocument, directory: Path) -> list[Path]:
    """kernels.json, .csv and .png in `directory`; the paths written. Raises KvtoolError."""
    figure = kernels_figure(document)
    return write_result(directory, "kernels", document, rows=case_rows(document.cases), figure=figure)


def kernel_tables(document: KernelsDocument) -> list[Table]:
    """Every table that the document has cases for."""
    tables = (
        (stream_table, "Decode", ("context", "batch_size"), cases_of(document, "decode")),
        (prefill_table, "Prefill", ("context", "query_len"), cases_of(document, "prefill")),
        (stream_table, "Store", ("batch_size", "query_len"), cases_of(document, "store")),
    )
    return [table(title, keys, cases) for table, title, keys, cases in tables if cases]


def cases_of(document: KernelsDocument, part: str) -> list[KernelCase]:
    """The cases of one part: decode, prefill or store."""
    return [case for case in document.cases if part in case.kernel]


def stream_table(title: str, always: tuple[str, ...], cases: Sequence[KernelCase]) -> Table:
    """Kernels that move bytes: GB/s next to what the device can read."""
    keys = varying_inputs(cases, SHARED_INPUTS) + always
    rows = [
        (
            *labels(case, keys),
            format_bytes(case.bytes.kv_read + case.bytes.kv_written),
            *times_us(case),
            rate(case.metrics.gbps),
            percent(case.roofline.mbu),
            *agreement(case),
        )
        for case in cases
    ]
    roofline = cases[0].roofline
    note = f"% of read: of the {rate(roofline.read_gbps_measured or 0.0)} GB/s that this device read in the same run."
    return Table(
        title=f"{title}: {cases[0].kernel}",
        columns=(*headings(keys), "KV", "µs p50", "µs p90", "GB/s", "% of\nread", "max diff", "equal"),
        rows=rows,
        labels=len(keys),
        note=" ".join([note, *reasons(cases)]),
    )


def prefill_table(title: str, always: tuple[str, ...], cases: Sequence[KernelCase]) -> Table:
    """Kernels that compute: TFLOP/s next to a matrix product's."""
    keys = varying_inputs(cases, SHARED_INPUTS) + always
    rows = [
        (
            *labels(case, keys),
            *times_us(case),
            rate(case.metrics.tflops or 0.0),
            percent(case.roofline.mfu),
            f"{case.roofline.bound or DASH}",
            *agreement(case),
        )
        for case in cases
    ]
    note = (
        "The last tokens of a context, over all of it. % of matmul: of the "
        f"{rate(cases[0].roofline.tflops_measured or 0.0)} TFLOP/s that a matrix product reached in the same run."
    )
    return Table(
        title=f"{title}: {cases[0].kernel}",
        columns=(*headings(keys), "µs p50", "µs p90", "TFLOP/s", "% of\nmatmul", "bound", "max diff", "equal"),
        rows=rows,
        labels=len(keys),
        note=note,
    )


def headings(keys: Sequence[str]) -> list[str]:
    return [HEADINGS.get(key, key.replace("_", "\n")) for key in keys]


def labels(case: KernelCase, keys: Sequence[str]) -> list[str]:
    values = ((key, case.inputs[key]) for key in keys)
    return [
        format_length(v) if k in LENGTHS and isinstance(v, int) else DASH if v is None else str(v) for k, v in values
    ]


def rate(per_second: float) -> str:
    """Three digits, all of those before the point."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def times_us(case: KernelCase) -> tuple[str, str]:
    time_ms = case.metrics.time_ms
    return format_ms(1e3 * time_ms.p50), format_ms(1e3 * time_ms.p90)


def agreement(case: KernelCase) -> tuple[str, str]:
    """The largest difference from the reference kernels, and whether rounding explains it."""
    check = case.check
    return (
        "not finite" if check.max_abs_diff is None else f"{check.max_abs_diff:.1e}",
        "yes" if check.outputs_equal else "NO",
    )


def reasons(cases: Sequence[KernelCase]) -> list[str]:
    """Why a share is missing, each reason once."""
    return [f"{DASH}: {reason}." for reason in sorted({c.roofline.reason for c in cases if c.roofline.reason})]


def kernels_figure(document: KernelsDocument) -> Figure:
    """Decode's GB/s and prefill's TFLOP/s against context, under what the device reached in the same run."""
    title = case_title("kernels", document.cases, document.environment)
    subtitle = shared_inputs(document.cases, ("layer", "dtype", "kv_cache_dtype", "block_size", "backend"))
    figure, (left, right) = new_figure(title, subtitle=subtitle, panels=2, width_in=11.5)
    decode, prefill = cases_of(document, "decode"), cases_of(document, "prefill")
    ceilings = document.cases[0].roofline if document.cases else None
    read_gbps, tflops = (ceilings.read_gbps_measured, ceilings.tflops_measured) if ceilings else (None, None)
    draw(
        figure,
        left,
        [(case, case.metrics.gbps) for case in decode],
        ceiling=read_gbps,
        label="decode, GB/s",
        limit="read",
    )
    draw(
        figure,
        right,
        [(case, case.metrics.tflops or 0.0) for case in prefill],
        ceiling=tflops,
        label="prefill, TFLOP/s",
        limit="matrix product",
    )
    return figure


def draw(
    figure: Figure,
    axes: Axes,
    points: Sequence[tuple[KernelCase, float]],
    *,
    ceiling: float | None,
    label: str,
    limit: str,
) -> None:
    """A line for each set of inputs that differ in more than context, and the measured ceiling dashed above."""
    cases = [case for case, _ in points]
    keys = varying_inputs(cases, (*SHARED_INPUTS, "batch_size"))
    lines: dict[tuple[str, ...], list[tuple[int, float]]] = {}
    for case, value in points:
        lines.setdefault(tuple(labels(case, keys)), []).append((int(case.inputs["context"] or 0), value))
    names = [HEADINGS.get(key, key) for key in keys]
    ends = []
    for colour, (told, line) in zip(cycle(COLOURS), lines.items(), strict=False):
        line.sort()
        axes.plot(*zip(*line, strict=True), color=colour, marker="o", markersize=4)
        name = ", ".join(f"{name} {value}" for name, value in zip(names, told, strict=True))
        ends.append(EndLabel(*line[-1], name or rate(line[-1][1]), colour))
    tokens_axis(axes)
    contexts = sorted({int(case.inputs["context"] or 0) for case in cases})
    axes.set_xticks(contexts)
    if ceiling is not None:
        axes.axhline(ceiling, color=GREY, linestyle="--", linewidth=1)
        ends.append(EndLabel(contexts[-1], ceiling, f"{limit}, {rate(ceiling)}", GREY))
    axes.set_ylim(0, 1.1 * max([*(value for _, value in points), ceiling or 0.0]))
    axes.set_xlabel("context, tokens a sequence")
    axes.set_ylabel(label)
    label_ends(figure, axes, ends)
