"""The look that all charts share, and the small things they need: byte and token axes, labels at the ends of lines.

Figures are made without pyplot: nothing global, no display.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtool.units import format_bytes, format_length

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart by colour-blind readers too, and in print.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")
GREY = "#8c8c8c"
RED = "#b2182b"
LABEL_POINTS = 9


def new_figure(
    title: str, *, subtitle: str = "", panels: int = 1, width_in: float = 9.0, height_in: float = 5.4
) -> tuple[Figure, list[Axes]]:
    """A figure with a title at the left and `panels` axes side by side, each with a light grid and no frame."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained", facecolor="white")
    figure.suptitle(f"{title}\n" if subtitle else title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    if subtitle:
        figure.text(0.01, 0.925, subtitle, ha="left", va="top", fontsize=10, color="#555555")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, which="major", color="#e6e6e6", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


@dataclass(frozen=True, slots=True)
class EndLabel:
    """Text to stand at the right of the point (x, y), in data coordinates."""

    x: float
    y: float
    text: str
    colour: str


def label_ends(figure: Figure, axes: Axes, labels: Sequence[EndLabel]) -> None:
    """Write each label beside its point, pushed apart vertically so that none overlaps. Set the axis limits before."""
    figure.draw_without_rendering()
    line_height = LABEL_POINTS * 1.35 * figure.dpi / 72
    lowest = float("-inf")
    for label in sorted(labels, key=lambda item: item.y):
        y = float(axes.transData.transform((label.x, label.y))[1])
        placed = max(y, lowest + line_height)
        lowest = placed
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(6, (placed - y) * 72 / figure.dpi),
            textcoords="offset points",
            color=label.colour,
            fontsize=LABEL_POINTS,
            va="center",
            annotation_clip=False,
        )


def bytes_axis(axes: Axes) -> None:
    """Round sizes in KiB, MiB, GiB on a logarithmic y axis: powers of two and halfway, fewer over a wide range."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_locator(LogLocator(base=2, subs=(1.0, 1.5), numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(round(value))))


def tokens_axis(axes: Axes) -> None:
    """Powers of two as 4k, 8k, ... on a logarithmic x axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_length(round(value))))
