"""The ranks part of a bench document: time, what is sent and what is held, against the layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kvtool.report.cells import DASH, optional_bytes
from kvtool.report.charts import COLOURS, LABEL_POINTS, literal
from kvtool.report.tables import Table
from kvtool.results import BenchDocument, RankPhase, RanksCase
from kvtool.units import MIB, format_bytes, format_length, format_ms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def ranks_cases(document: BenchDocument) -> list[RanksCase]:
    """In the order in which layouts ran."""
    return [case for case in document.cases if isinstance(case, RanksCase)]


def ranks_tables(document: BenchDocument) -> list[Table]:
    """None where no ranks ran."""
    cases = ranks_cases(document)
    return [time_table(cases), bytes_table(cases)] if cases else []


def layout(case: RanksCase) -> str:
    """`tp 4 x dcp 2`, and what went round where it was said."""
    run = case.ranks
    degrees = [f"{name} {count}" for name in ("tp", "cp", "dcp", "dp") if (count := getattr(run, name)) > 1]
    return " x ".join(degrees or ["tp 1"]) + (f", {run.ring}" if run.ring != "auto" else "")


def _cell(case: RanksCase) -> tuple[str, ...]:
    return layout(case), format_length(int(case.inputs.get("input_len") or 0)), str(case.inputs.get("batch_size"))


def _times(phase: RankPhase | None) -> tuple[str, ...]:
    if phase is None:
        return (DASH,) * 3
    return tuple(format_ms(value) for value in (phase.wall_ms, phase.exposed_ms, phase.hidden_ms))


def time_table(cases: Sequence[RanksCase]) -> Table:
    """What a prefill and a decode step take, and how much of that is waiting."""
    phases = [f"{phase}\n{what}" for phase in ("prefill", "decode") for what in ("ms", "waits", "hidden")]
    return Table(
        title="Time by layout",
        columns=("layout", "input", "batch", *phases),
        rows=[(*_cell(case), *_times(case.ranks.prefill), *_times(case.ranks.decode)) for case in cases],
        labels=3,
        spare=("batch",),
        note="Medians of the first rank: a prefill of the batch, a decode step. waits: it can do nothing but wait for "
        "others; hidden: what the same exchanges take alone, less what is waited for.",
    )


def bytes_table(cases: Sequence[RanksCase]) -> Table:
    """What is sent, by the formula and by the kernel's count, and what the fullest rank holds."""
    rows = []
    for case in cases:
        run = case.ranks
        weights, pages = held(case)
        phases = [run.prefill, run.decode]
        told = [cell for phase in phases for cell in _sent(phase)]
        round_ = " / ".join(dict.fromkeys(p.goes_round for p in phases if p is not None and p.goes_round)) or DASH
        rows.append((*_cell(case), *told, round_, optional_bytes(weights), optional_bytes(pages)))
    columns = ("layout", "input", "batch", "prefill\nsends", "sockets", "decode\nsends", "sockets ", "round")
    return Table(
        title="Bytes by layout",
        columns=(*columns, "weights\na rank", "pages\na rank"),
        rows=rows,
        labels=3,
        spare=("batch", "sockets ", "round"),
        note="sends: all ranks together, by the formula; sockets: as the kernel counted it, headers and what the first "
        "rank tells the others included. a rank: of the fullest.",
    )


def _sent(phase: RankPhase | None) -> tuple[str, str]:
    if phase is None:
        return DASH, DASH
    return format_bytes(phase.formula_bytes), DASH if phase.socket_bytes is None else format_bytes(phase.socket_bytes)


def held(case: RanksCase) -> tuple[int | None, int]:
    """Weights and pages of the fullest rank; weights of one process are not counted."""
    ranks = case.ranks.ranks
    if not ranks:
        return None, case.memory.kv_pool_bytes or 0
    return max(r.weights_allocated_bytes for r in ranks), max(r.kv_allocated_bytes for r in ranks)


def ranks_findings(document: BenchDocument) -> list[str]:
    """How far the bytes that were sent are from the formula, and those held from the prediction."""
    cases = [case for case in ranks_cases(document) if case.ranks.ranks]
    if not cases:
        return []
    uses = [use for case in cases for use in case.ranks.ranks]
    exact = all(
        use.kv_predicted_bytes == use.kv_allocated_bytes
        and use.weights_predicted_bytes in (None, use.weights_allocated_bytes)
        for use in uses
    )
    counted = [
        case.ranks.prefill for case in cases if case.ranks.prefill.socket_bytes and case.ranks.prefill.formula_bytes
    ]
    beyond = max(((phase.socket_bytes or 0) / phase.formula_bytes - 1 for phase in counted), default=None)
    told = "Every rank holds the bytes that were predicted" if exact else "Ranks hold other bytes than were predicted"
    more = (
        "" if beyond is None else f", and prefills send at most {100 * beyond:.1f}% more over sockets than by formula"
    )
    return [f"{told}{more}.", *_ways_round(cases)]


def _ways_round(cases: Sequence[RanksCase]) -> list[str]:
    """Of layouts that were run both ways: which way the formula takes for a prefill, and which was faster."""
    found = []
    for case in cases:
        others = [one for one in cases if _same_but_ring(case, one) and one.ranks.ring == "pass-q"]
        if case.ranks.ring != "pass-kv" or not others:
            continue
        kv, q = case.ranks.prefill, others[0].ranks.prefill
        fewer = "pass-kv" if kv.formula_bytes <= q.formula_bytes else "pass-q"
        faster = "pass-kv" if kv.wall_ms <= q.wall_ms else "pass-q"
        found.append(
            f"A prefill of {' x '.join(_cell(case)[1:])} on {layout(case).partition(',')[0]}: {fewer} is fewer bytes "
            f"({format_bytes(kv.formula_bytes)} by pass-kv, {format_bytes(q.formula_bytes)} by pass-q), {faster} was "
            f"faster ({format_ms(kv.wall_ms)} and {format_ms(q.wall_ms)} ms)."
        )
    return found


def _same_but_ring(a: RanksCase, b: RanksCase) -> bool:
    return all(a.inputs.get(key) == b.inputs.get(key) for key in ("tp", "cp", "dcp", "dp", "input_len", "batch_size"))


def draw_prefill(figure: Figure, axes: Axes, cases: Sequence[RanksCase]) -> None:
    """Bars of prefill time, one a case."""
    _draw_times(axes, cases, lambda case: case.ranks.prefill)


def draw_decode(figure: Figure, axes: Axes, cases: Sequence[RanksCase]) -> None:
    """Bars of a decode step's time, one a case."""
    _draw_times(axes, cases, lambda case: case.ranks.decode)


def _draw_times(axes: Axes, cases: Sequence[RanksCase], phase_of: Callable[[RanksCase], RankPhase | None]) -> None:
    """What is hidden lies inside the computing: it is drawn on it, from the top of it down."""
    for place, case in enumerate(cases):
        phase = phase_of(case)
        if phase is None:
            continue
        hidden = min(phase.hidden_ms, phase.compute_ms)
        axes.bar(place, phase.compute_ms, color=COLOURS[0])
        axes.bar(place, phase.exposed_ms, bottom=phase.compute_ms, color=COLOURS[4])
        axes.bar(
            place,
            hidden,
            bottom=phase.compute_ms - hidden,
            facecolor="none",
            edgecolor="white",
            hatch="////",
            linewidth=0,
        )
    axes.set_ylabel("ms")
    _name_bars(axes, cases)


def draw_rank_memory(figure: Figure, axes: Axes, cases: Sequence[RanksCase]) -> None:
    """Weights below pages, whose MiB stand above, and what was predicted for both."""
    for place, case in enumerate(cases):
        weights, pages = held(case)
        axes.bar(place, (weights or 0) / MIB, color=COLOURS[6])
        axes.bar(place, pages / MIB, bottom=(weights or 0) / MIB, color=COLOURS[2])
        axes.annotate(
            f"{pages / MIB:.3g}",
            (place, ((weights or 0) + pages) / MIB),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=LABEL_POINTS - 1,
            color=COLOURS[2],
        )
        predicted = [
            (use.weights_predicted_bytes or use.weights_allocated_bytes) + use.kv_predicted_bytes
            for use in case.ranks.ranks
        ]
        if predicted:
            axes.plot(place, max(predicted) / MIB, marker="o", color=COLOURS[1], markersize=5)
    axes.margins(y=0.12)
    axes.set_ylabel("MiB: weights (dark), pages (green)")
    _name_bars(axes, cases)


def _name_bars(axes: Axes, cases: Sequence[RanksCase]) -> None:
    several = len({_cell(case)[1:] for case in cases}) > 1
    names = [layout(case) + (f"\n{' x '.join(_cell(case)[1:])}" if several else "") for case in cases]
    axes.set_xticks(range(len(cases)), list(map(literal, names)), fontsize=LABEL_POINTS - 1, rotation=30, ha="right")
    axes.grid(visible=False, axis="x")
