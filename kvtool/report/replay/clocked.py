"""What a replay with a clock found, drawn: first tokens with tiers and without, and how full a cluster's links are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtool.report.charts import COLOURS, GREY, new_figure
from kvtool.results import ReplayCluster, ReplayDocument, ReplayTiers
from kvtool.units import format_bytes_short, format_ms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAR = 0.26


def clocked_figure(document: ReplayDocument) -> Figure | None:
    """A panel for tiers and one for a cluster, as far as they were asked for; None without both."""
    panels = bool(document.tiers) + (document.cluster is not None)
    if not panels:
        return None
    title = f"kvtool replay on a clock: {document.trace.name}"
    figure, axes = new_figure(title, subtitle=_subtitle(document), panels=panels, width_in=7.0 * panels)
    if document.tiers:
        _draw_tiers(axes[0], document.tiers)
    if document.cluster is not None:
        _draw_links(axes[-1], document.cluster)
    return figure


def _subtitle(document: ReplayDocument) -> str:
    cluster = document.cluster
    cards = dict.fromkeys([document.gpu, *([cluster.prefill_gpu, cluster.decode_gpu] if cluster else [])])
    return ", ".join(name for name in (document.model, *cards) if name)


def clocked_words(document: ReplayDocument) -> str:
    """What the chart shows, for readers who cannot see it."""
    tiers = [
        f"below {format_bytes_short(one.capacity_bytes)} {format_ms(one.ttft_ms.mean)} ms" for one in document.tiers
    ]
    modes = document.cluster.modes if document.cluster else []
    return "; ".join(["Mean first tokens and links", *tiers, *(f"{one.mode} {one.makespan_s:,.1f} s" for one in modes)])


def _draw_tiers(axes: Axes, tiers: list[ReplayTiers]) -> None:
    """Three bars a capacity, each with its milliseconds."""
    kinds = (
        ("without tiers", GREY, [one.without_ttft_ms.mean for one in tiers]),
        ("with tiers", COLOURS[0], [one.ttft_ms.mean for one in tiers]),
        ("loads in no time", COLOURS[2], [one.oracle_ttft_ms.mean for one in tiers]),
    )
    for shift, (name, colour, values) in enumerate(kinds):
        places = [index + (shift - 1) * BAR for index in range(len(tiers))]
        bars = axes.bar(places, values, BAR * 0.92, color=colour, label=name)
        axes.bar_label(bars, [format_ms(value) for value in values], fontsize=9, padding=2)
    axes.set_xticks(range(len(tiers)), [format_bytes_short(one.capacity_bytes) for one in tiers])
    axes.set_xlabel("cache in the GPU")
    axes.set_ylabel("mean time to the first token, ms")
    axes.margins(y=0.22)
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="upper center")


def _draw_links(axes: Axes, cluster: ReplayCluster) -> None:
    """Three bars a link, the first one at the top."""
    names = [link.link for link in cluster.modes[0].links]
    for shift, (mode, colour) in enumerate(zip(cluster.modes, (GREY, COLOURS[0], COLOURS[2]), strict=True)):
        used = [100 * link.utilisation for link in mode.links]
        label = f"{mode.mode}: all done after {mode.makespan_s:,.1f} s"
        axes.barh(
            [index + (shift - 1) * BAR for index in range(len(names))], used, BAR * 0.92, color=colour, label=label
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"% of the link's bandwidth, {cluster.prefill} prefill and {cluster.decode} decode nodes")
    axes.legend(frameon=False, fontsize=9, loc="lower right")
