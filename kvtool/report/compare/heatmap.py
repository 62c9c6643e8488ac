"""A grid of bytes as a picture: the darker the more, each cell with its number, rows in headed groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtool.report.charts import LABEL_POINTS, SUBTITLE_IN, literal
from kvtool.units import GIB, format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL_WIDTH_IN, CELL_HEIGHT_IN = 0.95, 0.32
MARGIN_HEIGHT_IN = 1.45
LABEL_CHARACTER_IN = 0.082
COLOUR_MAP = "YlGnBu"
LEAST_RANGE = 16  # of the colours, so that nearly equal cells look nearly equal
DARK = 0.55  # share of the colour scale above which a cell's number is white


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """`crossed` cells are hatched: what they mean is said in the chart's subtitle."""

    count: int
    crossed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rows under a heading: (label, a cell for each column)."""

    heading: str
    rows: Sequence[tuple[str, Sequence[Cell]]]


def heat_map(title: str, subtitle: str, columns: Sequence[str], groups: Sequence[Group]) -> Figure:
    """GiB in each cell on a logarithmic scale of colours; a line of its own for each group's heading."""
    from matplotlib.figure import Figure

    lines = sum(1 + len(group.rows) for group in groups)
    words = [label for group in groups for label, _ in group.rows] + [group.heading for group in groups]
    label_in = 0.3 + LABEL_CHARACTER_IN * max(map(len, words))
    width_in = max(label_in + CELL_WIDTH_IN * len(columns) + 1.3, LABEL_CHARACTER_IN * len(subtitle) + 0.4, 6)
    figure = Figure(
        figsize=(width_in, MARGIN_HEIGHT_IN + CELL_HEIGHT_IN * lines), layout="constrained", facecolor="white"
    )
    figure.suptitle(f"{literal(title)}\n\n", x=0.01, ha="left", fontsize=13, fontweight="bold")
    top = 1 - SUBTITLE_IN / figure.get_figheight()
    figure.text(0.01, top, literal(subtitle), ha="left", va="top", fontsize=10, color="#555555")
    axes = figure.subplots()
    _draw(figure, axes, columns, groups, _scale(groups))
    return figure


@dataclass(frozen=True, slots=True)
class _Scale:
    """Colours from `low` to `high` bytes, logarithmically."""

    low: float
    high: float

    def share(self, count: int) -> float:
        """0 at `low` to 1 at `high`; nothing at all counts as `low`."""
        return math.log(max(count, self.low) / self.low) / math.log(self.high / self.low)

    def colour(self, count: int) -> tuple[float, float, float, float]:
        from matplotlib import colormaps

        return colormaps[COLOUR_MAP](self.share(count)) if count else (1.0, 1.0, 1.0, 1.0)


def _scale(groups: Sequence[Group]) -> _Scale:
    counts = [cell.count for group in groups for _, cells in group.rows for cell in cells if cell.count]
    high = max(counts, default=LEAST_RANGE)
    return _Scale(min(min(counts, default=1), high / LEAST_RANGE), high)


def _draw(figure: Figure, axes: Axes, columns: Sequence[str], groups: Sequence[Group], scale: _Scale) -> None:
    places: list[int] = []
    labels: list[str] = []
    line = 0
    for group in groups:
        axes.annotate(
            literal(group.heading), (0, line + 0.6), xycoords=("axes fraction", "data"), xytext=(-4, 0),
            textcoords="offset points", ha="right", va="center", fontsize=LABEL_POINTS, fontweight="bold",
        )  # fmt: skip
        for label, cells in group.rows:
            line += 1
            places.append(line)
            labels.append(literal(label))
            for column, cell in enumerate(cells):
                _draw_cell(axes, column, line, cell, scale)
        line += 1
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(line - 0.4, -0.1)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks([place + 0.1 for place in places], labels)
    axes.tick_params(length=0, labelsize=LABEL_POINTS, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    _draw_scale(figure, axes, scale)


def _draw_scale(figure: Figure, axes: Axes, scale: _Scale) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    bar = figure.colorbar(
        ScalarMappable(norm=LogNorm(scale.low, scale.high), cmap=COLOUR_MAP), ax=axes, fraction=0.04, pad=0.02
    )
    bar.ax.minorticks_off()
    ticks = [scale.low, math.sqrt(scale.low * scale.high), scale.high]
    bar.set_ticks(ticks, labels=[format_bytes(round(tick)) for tick in ticks], fontsize=LABEL_POINTS - 1)
    bar.ax.spines[:].set_visible(False)


def _draw_cell(axes: Axes, column: int, line: int, cell: Cell, scale: _Scale) -> None:
    from matplotlib.patches import Rectangle

    colour = scale.colour(cell.count)
    axes.add_patch(
        Rectangle(
            (column - 0.5, line - 0.4), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.5,
            hatch="////" if cell.crossed else None,
        )
    )  # fmt: skip
    axes.text(
        column, line + 0.1, gib(cell.count), ha="center", va="center", fontsize=LABEL_POINTS,
        color="white" if scale.share(cell.count) > DARK else "black",
        bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip


def gib(count: int) -> str:
    """GiB in three significant digits: `0.0625`, `1.25`, `134`."""
    value = count / GIB
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
