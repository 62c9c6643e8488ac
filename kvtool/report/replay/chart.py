"""Hits over capacity: LRU's curves with their knees, the other policies' points, and the ceilings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from kvtool.report.charts import COLOURS, GREY, LABEL_POINTS, ON_LINES, EndLabel, label_ends, new_figure, spread
from kvtool.report.replay.sentences import best_choice, knee_words
from kvtool.results import ReplayCurve, ReplayDocument, ReplayKnee, ReplayPoint, ReplayRow
from kvtool.units import GIB, MIB, TIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ANY = ReplayPoint | ReplayRow | ReplayKnee


def replay_figure(document: ReplayDocument) -> Figure:
    """Block hits in percent over blocks, or over bytes where a model gives them."""
    trace = document.trace
    in_bytes = any(row.capacity_bytes is not None for row in document.rows) or document.model is not None
    subtitle = f"{trace.requests:,} requests, {trace.total_blocks:,} blocks, {trace.unique_blocks:,} unique"
    figure, (axes,) = new_figure(f"kvtool replay: {_shown(trace.name)}", subtitle=subtitle, width_in=11.5)
    colours = cycle(COLOURS)
    ends: list[EndLabel] = []
    for curve in document.curves:
        ends.append(_draw_curve(axes, curve, next(colours), in_bytes))
    drawn = {curve.policy for curve in document.curves}
    for policy in dict.fromkeys(row.policy for row in document.rows if row.policy not in drawn):
        rows = [row for row in document.rows if row.policy == policy and _room(row, in_bytes)]
        if rows:
            ends.append(_draw_points(axes, rows, next(colours), in_bytes))
    _draw_ceilings(axes, document, in_bytes)
    axes.set_ylim(0, 105 * max(0.01, trace.ideal_block_hit_ratio))
    _capacity_axis(axes, in_bytes)
    axes.set_ylabel("blocks that hit, %")
    label_ends(figure, axes, ends)
    _label_knees(figure, axes, document.curves, in_bytes)
    return figure


def _draw_curve(axes: Axes, curve: ReplayCurve, colour: str, in_bytes: bool) -> EndLabel:
    rooms = [_room(point, in_bytes) for point in curve.points]
    hits = [100 * point.block_hit_ratio for point in curve.points]
    axes.plot(rooms, hits, color=colour, linewidth=2)
    if curve.knee is not None:
        at, height = _room(curve.knee, in_bytes), 100 * curve.knee.block_hit_ratio
        axes.plot([at], [height], marker="o", markersize=8, color=colour, fillstyle="none")
    return EndLabel(rooms[-1], hits[-1], curve.policy, colour)


def _label_knees(figure: Figure, axes: Axes, curves: Sequence[ReplayCurve], in_bytes: bool) -> None:
    """What each knee says, inside the axes where its own curve, which never falls, is not: below it at the right, or
    in the right half above it at the left. Those of one side stand apart.
    """
    figure.draw_without_rendering()
    middle = sum(axes.transAxes.transform([(0, 0), (1, 0)])[:, 0]) / 2
    sides: dict[bool, list[EndLabel]] = {True: [], False: []}
    for colour, curve in zip(cycle(COLOURS), curves, strict=False):
        if curve.knee is not None:
            at, height = _room(curve.knee, in_bytes), 100 * curve.knee.block_hit_ratio
            is_left = bool(axes.transData.transform((at, height))[0] <= middle)
            sides[is_left].append(EndLabel(at, height, knee_words(curve.knee), colour))
    for is_left, labels in sides.items():
        for label, moved in zip(sorted(labels, key=lambda label: label.y), _moved(axes, labels), strict=True):
            axes.annotate(
                label.text, (label.x, label.y), xytext=(10, moved - 8) if is_left else (-10, moved + 8),
                textcoords="offset points", ha="left" if is_left else "right", va="top" if is_left else "bottom",
                fontsize=LABEL_POINTS, color=label.colour, bbox=ON_LINES,
            )  # fmt: skip


def _moved(axes: Axes, labels: Sequence[EndLabel]) -> list[float]:
    """By how many points each label, from the lowest on, moves so that none overlaps another."""
    points_a_pixel = 72 / axes.figure.dpi
    heights = sorted(float(axes.transData.transform((label.x, label.y))[1]) * points_a_pixel for label in labels)
    return [there - here for here, there in zip(heights, spread(heights, LABEL_POINTS * 1.4), strict=True)]


def _draw_points(axes: Axes, rows: Sequence[ReplayRow], colour: str, in_bytes: bool) -> EndLabel:
    points = sorted((_room(row, in_bytes), 100 * row.block_hit_ratio) for row in rows)
    axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, linewidth=1)
    return EndLabel(*points[-1], rows[0].policy, colour)


def _draw_ceilings(axes: Axes, document: ReplayDocument, in_bytes: bool) -> None:
    """The best choice at each capacity asked for, dashed, and what no capacity exceeds."""
    bounds = {_room(row, in_bytes): 100 * best_choice(row) for row in document.rows if _room(row, in_bytes)}
    if bounds:
        axes.plot(*zip(*sorted(bounds.items()), strict=True), color=GREY, linestyle="--", marker="_", linewidth=1)
    axes.axhline(100 * document.trace.ideal_block_hit_ratio, color=GREY, linestyle=":", linewidth=1)
    axes.text(
        0.01, 100 * document.trace.ideal_block_hit_ratio, "no limit of capacity; dashed: the best choice", fontsize=9,
        color=GREY, va="bottom", transform=axes.get_yaxis_transform(),
    )  # fmt: skip


def _room(point: ANY, in_bytes: bool) -> int:
    """0 for no limit."""
    return (point.capacity_bytes if in_bytes else point.capacity_blocks) or 0


def _capacity_axis(axes: Axes, in_bytes: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log", base=2 if in_bytes else 10)
    axes.xaxis.set_major_locator(LogLocator(base=4 if in_bytes else 10, numticks=14))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _bytes(value) if in_bytes else f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("capacity, bytes" if in_bytes else "capacity, blocks")


def _bytes(value: float) -> str:
    factor, name = next((f, n) for f, n in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (1, "B")) if value >= f or f == 1)
    return f"{value / factor:g} {name}"


def _shown(name: str) -> str:
    """A file's name as it is: a dollar sign would begin a formula."""
    return name.replace("$", r"\$")
