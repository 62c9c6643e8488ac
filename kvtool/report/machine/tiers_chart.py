"""Speed over the size of a request, and loading against computing over the length of a prefix."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from kvtool.report.cells import rate
from kvtool.report.charts import COLOURS, GREY, EndLabel, label_ends, log_axis, new_figure, tokens_axis
from kvtool.results import BreakEvenRow, TierRow, TiersDocument
from kvtool.units import format_bytes, format_length

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[int, float]
DASHED = (0, (4, 2))


def tiers_figure(document: TiersDocument) -> Figure:
    """One panel, or two where break-evens are known."""
    inputs = document.inputs
    figure, axes = new_figure(
        f"kvtool tiers: {inputs['model']}",
        subtitle=f"pages of {inputs['block_size']} tokens, {inputs['kv_cache_dtype']}, {inputs['device']}",
        panels=2 if document.break_even else 1,
        width_in=14.0 if document.break_even else 9.0,
    )
    draw_speeds(figure, axes[0], document.rows)
    if document.break_even:
        draw_break_even(figure, axes[1], document.break_even)
    return figure


def speed_lines(rows: Sequence[TierRow]) -> dict[tuple[str, str], list[Point]]:
    """GB/s by size under tier and direction: of each size the best that any number of requests in flight reached."""
    lines: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if row.method in ("copies", "requests") and row.direction != "both":
            line = lines.setdefault((row.tier, row.direction), {})
            line[row.size_bytes] = max(line.get(row.size_bytes, 0.0), row.gbps.p50)
    return {name: sorted(line.items()) for name, line in lines.items()}


def draw_speeds(figure: Figure, axes: Axes, rows: Sequence[TierRow]) -> None:
    """A line a tier and direction; up is drawn through, down dashed."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    lines = speed_lines(rows)
    colours = dict(zip(dict.fromkeys(tier for tier, _ in lines), cycle(COLOURS), strict=False))
    ends = []
    for (tier, direction), line in lines.items():
        style = "-" if direction == "up" else DASHED
        axes.plot(*zip(*line, strict=True), color=colours[tier], linestyle=style, marker="o", markersize=4)
        ends.append(EndLabel(*line[-1], f"{tier} {direction}: {rate(line[-1][1])}", colours[tier]))
    axes.set_xscale("log", base=2)
    log_axis(axes)
    sizes = [size for line in lines.values() for size, _ in line]
    axes.set_xticks([4096 * 16**power for power in range(5) if 4096 * 16**power <= 2 * max(sizes)])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(round(value))))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("bytes of a request or a copy, as many in flight as is fastest")
    axes.set_ylabel("GB/s")
    label_ends(figure, axes, ends)


def draw_break_even(figure: Figure, axes: Axes, rows: Sequence[BreakEvenRow]) -> None:
    """Milliseconds to load and to compute a prefix, with a ring where they meet."""
    from matplotlib.ticker import FuncFormatter

    computed = [(tokens, compute_ms) for tokens, _, compute_ms in rows[0].points]
    axes.plot(*zip(*computed, strict=True), color=GREY, linewidth=2)
    ends = [EndLabel(*computed[-1], "computing", GREY)]
    for row, colour in zip(rows, cycle(COLOURS), strict=False):
        loaded = [(tokens, load_ms) for tokens, load_ms, _ in row.points]
        axes.plot(*zip(*loaded, strict=True), color=colour, marker="o", markersize=3)
        ends.append(EndLabel(*loaded[-1], f"from {row.tier}", colour))
        if row.prefix_tokens is not None:
            axes.plot([row.prefix_tokens], [row.load_ms], marker="o", markersize=10, color=colour, fillstyle="none")
    tokens_axis(axes)
    tokens = [tokens for tokens, _, _ in rows[0].points]
    axes.set_xticks(tokens[:: max(1, len(tokens) // 6)])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_length(round(value))))
    log_axis(axes)
    axes.set_xlabel("tokens of a prefix (a ring: loading is faster from here on)")
    axes.set_ylabel("ms")
    label_ends(figure, axes, ends)
