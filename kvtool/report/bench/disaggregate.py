"""The disaggregate part of a bench document: both ways of serving side by side, and what was handed over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvtool.report.cells import DASH, p50, percent
from kvtool.report.charts import COLOURS, LABEL_POINTS, literal
from kvtool.report.tables import Table
from kvtool.results import BenchDocument, DisaggregateCase, Handover
from kvtool.units import format_bytes, format_length

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def disaggregate_cases(document: BenchDocument) -> list[DisaggregateCase]:
    """In the order in which they ran."""
    return [case for case in document.cases if isinstance(case, DisaggregateCase)]


def disaggregate_tables(document: BenchDocument) -> list[Table]:
    """None where no such thing ran."""
    cases = disaggregate_cases(document)
    if not cases:
        return []
    handed = [(case, case.disaggregate.handover) for case in cases if case.disaggregate.handover is not None]
    return [serving_table(cases), *([handover_table(handed)] if handed else [])]


def way(case: DisaggregateCase) -> str:
    """`2 that do both`, or `prefill 1, decode 1`."""
    told = case.disaggregate.handover
    if told is None:
        return f"{case.disaggregate.engines} that do both"
    degrees = [
        f"{name} {count}" + (f" of tp {tp}" if tp > 1 else "")
        for name, count, tp in (("prefill", told.prefill, told.prefill_tp), ("decode", told.decode, told.decode_tp))
    ]
    return ", ".join(degrees)


def serving_table(cases: Sequence[DisaggregateCase]) -> Table:
    """What a request waits for."""
    rows = [
        (
            way(case),
            format_length(int(case.inputs.get("input_len") or 0)),
            p50(case.metrics.ttft_ms),
            p50(case.metrics.tpot_ms),
            p50(case.metrics.e2e_ms),
            DASH if case.disaggregate.goodput_ratio is None else percent(case.disaggregate.goodput_ratio),
        )
        for case in cases
    ]
    return Table(
        title="Prefill and decode together and apart",
        columns=("engines", "input", "TTFT\nms", "TPOT\nms", "E2E\nms", "goodput"),
        rows=rows,
        labels=2,
        note="Medians over the same requests at the same times. goodput: requests within every limit of --goodput.",
    )


def handover_table(cases: Sequence[tuple[DisaggregateCase, Handover]]) -> Table:
    """What went over, how long it took, and what of that an answer waited for."""
    rows = [
        (
            f"{told.transfer}, by {told.by}",
            format_length(int(case.inputs.get("input_len") or 0)),
            f"{told.pages_sent:,}",
            f"{told.pages_spared:,}",
            format_bytes(told.bytes),
            f"{told.descriptors:,}",
            p50(told.transfer_ms),
            p50(told.exposed_ms),
            DASH if told.alpha_us is None else f"{told.alpha_us:,.0f}",
            DASH if told.gbps is None else f"{told.gbps:.2f}",
        )
        for case, told in cases
    ]
    return Table(
        title="Pages handed over",
        columns=(
            *("way", "input", "pages", "spared", "bytes", "runs"),
            *("takes\nms", "waits\nms", "alpha\nus", "GB/s"),
        ),
        rows=rows,
        labels=2,
        spare=("runs", "alpha\nus"),
        note="spared: pages that were there already. takes: a request, from the first byte copied to the last that "
        "arrived; waits: what of it was after its prompt was computed. time = alpha x runs of bytes + bytes / GB/s, "
        "fitted; -: the transfers do not tell.",
    )


def draw_served(figure: Figure, axes: Axes, cases: Sequence[DisaggregateCase]) -> None:
    """Bars of the median TTFT and TPOT of each way of serving, with their values."""
    for place, case in enumerate(cases):
        for side, summary, colour in ((-0.2, case.metrics.ttft_ms, 0), (0.2, case.metrics.tpot_ms, 4)):
            if summary is not None:
                axes.bar(place + side, summary.p50, width=0.38, color=COLOURS[colour])
                axes.annotate(
                    p50(summary), (place + side, summary.p50), ha="center", va="bottom", fontsize=LABEL_POINTS
                )
    names = [f"{way(case)}\n{format_length(int(case.inputs.get('input_len') or 0))} tokens" for case in cases]
    axes.set_xticks(range(len(cases)), list(map(literal, names)), fontsize=LABEL_POINTS)
    axes.set_ylabel("ms")
    axes.margins(y=0.15)
    axes.grid(visible=False, axis="x")
