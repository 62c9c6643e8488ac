"""How far each number of an advice is from the one that would turn the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtool.report.cells import percent
from kvtool.report.charts import COLOURS, GREY, literal, new_figure
from kvtool.results import AdviseDocument

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NARROW = 0.1  # a margin that a measurement may well turn
WIDEST = 3.0  # of a bar: beyond it the number alone tells


def advise_figure(document: AdviseDocument) -> Figure:
    """A bar a question, grey where the margin is narrow; none where nothing was compared."""
    figure, (axes,) = new_figure(
        f"kvtool advise: {document.inputs['model']}",
        subtitle=f"{document.inputs['num_gpus']} x {document.inputs['gpu']}, for {document.inputs['goal']}",
    )
    decisions = list(reversed(document.decisions))
    for place, one in enumerate(decisions):
        margin = one.margin or 0.0
        axes.barh(place, min(margin, WIDEST), color=GREY if margin < NARROW else COLOURS[0], height=0.6)
        told = one.answer if one.margin is None else f"{one.answer} ({percent(margin)})"
        axes.text(min(margin, WIDEST) + 0.03, place, literal(told), va="center", fontsize=9)
    axes.set_yticks(range(len(decisions)), [literal(one.question) for one in decisions])
    axes.set_xlim(0, WIDEST * 1.6)
    axes.set_xticks([0, 1, 2, WIDEST], ["0%", "100%", "200%", f"{percent(WIDEST)} or more"])
    axes.set_xlabel("how far the number is from the one that would turn the answer, in % of that (grey: under 10%)")
    return figure
