"""Other libraries' kernels next to ours: how their times compare, who is ahead, who could not run, and a chart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kvtool.report.bench.tables import DASH
from kvtool.report.cases import case_rows, varying_inputs
from kvtool.report.charts import COLOURS, GREY, literal
from kvtool.results import KernelCase, KernelPeer
from kvtool.units import format_length

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DIFFERENT = "WRONG"
DOT_GAP = 0.13  # of a row, between the dots of two peers
POINT_KEYS = ("layer", "kv_cache_dtype", "block_size")


def with_peers(cases: Sequence[KernelCase]) -> list[KernelCase]:
    return [case for case in cases if case.peers]


def peer_names(cases: Sequence[KernelCase]) -> list[str]:
    return list(dict.fromkeys(peer.name for case in cases for peer in case.peers))


def ratio_cell(case: KernelCase, name: str) -> str:
    """Its time over ours as 1.25x, WRONG where its output was another, a dash where it has no time."""
    peer = _peer(case, name)
    if peer is None or peer.ratio is None:
        return DIFFERENT if peer is not None and peer.outputs_equal is False else DASH
    return ratio(peer.ratio)


def ratio(value: float) -> str:
    """Three digits, and an x."""
    return f"{value:.2f}x" if value < 10 else f"{value:.1f}x" if value < 100 else f"{value:.0f}x"


def peer_lines(cases: Sequence[KernelCase]) -> list[str]:
    """Points where a peer is ahead, by name, or that none is; then what there is to know of each peer."""
    timed = [case for case in cases if any(peer.ratio is not None for peer in case.peers)]
    lines = [line for name in peer_names(timed) for line in _ahead(timed, name)]
    if timed and not lines:
        lines.append(f"No peer is ahead of ours at any point ({len(timed)} compared).")
    return lines + [line for name in peer_names(cases) for line in _told(cases, name)]


def _ahead(cases: Sequence[KernelCase], name: str) -> list[str]:
    """Where this peer's median time is the shorter one, and whether that is beyond chance."""
    points = []
    for case in cases:
        peer = _peer(case, name)
        if peer is not None and peer.ratio is not None and peer.ratio < 1:
            low, high = peer.ratio_ci_low or 0.0, peer.ratio_ci_high or 0.0
            chance = "" if high < 1 else f", within chance: {ratio(low)} to {ratio(high)}"
            points.append(f"{point(case, cases)} ({ratio(peer.ratio)}{chance})")
    return [f"{name} is ahead at {', '.join(points)}."] if points else []


def _told(cases: Sequence[KernelCase], name: str) -> list[str]:
    """Its version, and each of its notes once, with the points that have it where not all do."""
    peers = [(case, peer) for case in cases if (peer := _peer(case, name)) is not None]
    version = next((peer.version for _, peer in peers if peer.version), None)
    lines = []
    for note in dict.fromkeys(peer.note for _, peer in peers if peer.note):
        having = [case for case, peer in peers if peer.note == note]
        where = "" if len(having) == len(peers) else f" (at {len(having)} of {len(peers)} points)"
        lines.append(f"{name}{f' {version}' if version else ''}: {note}{where}.")
    return lines or ([f"{name} {version}."] if version else [])


def point(case: KernelCase, among: Sequence[KernelCase]) -> str:
    """`decode 4k x 8`: a case in few words, told from those beside it."""
    part = "decode" if "decode" in case.kernel else "prefill"
    context = case.inputs["context"]
    length = format_length(context) if isinstance(context, int) else str(context)
    told = [str(case.inputs[key]) for key in varying_inputs(among, POINT_KEYS)]
    return " ".join([part, *told, length, f"x {case.inputs['batch_size']}"])


def peer_columns(cases: Sequence[KernelCase]) -> list[dict[str, Any]]:
    """What the CSV row of each case says of every peer, as `peers.sdpa.ratio`; empty where the case has none."""
    rows: list[dict[str, Any]] = [{} for _ in cases]
    for name in peer_names(cases):
        peers = [_peer(case, name) or KernelPeer(name=name, version=None) for case in cases]
        for row, columns in zip(rows, case_rows(peers), strict=True):
            row |= {f"peers.{name}.{key}": value for key, value in columns.items() if key != "name"}
    return rows


def draw_peers(axes: Axes, cases: Sequence[KernelCase]) -> None:
    """A row a case, a dot a peer at its time over ours, with its interval; ours is the line at 1."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    cases = [case for case in cases if any(peer.ratio is not None for peer in case.peers)]
    axes.axvline(1, color=GREY, linestyle="--", linewidth=1)
    names = peer_names(cases)
    for index, (colour, name) in enumerate(zip(COLOURS, names, strict=False)):
        above = DOT_GAP * (index - (len(names) - 1) / 2)
        dots = [(row + above, peer) for row, case in enumerate(cases) if (peer := _peer(case, name)) and peer.ratio]
        if dots:
            _draw_dots(axes, dots, name, colour)
    axes.set_yticks(range(len(cases)), [literal(point(case, cases)) for case in cases], fontsize=9)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("time of a peer / ours (right of 1x: ours is faster)")
    axes.legend(loc="upper left", bbox_to_anchor=(0, 1.12), ncols=3, frameon=False, fontsize=9)


def _draw_dots(axes: Axes, dots: Sequence[tuple[float, KernelPeer]], name: str, colour: str) -> None:
    rows = [row for row, _ in dots]
    ratios = [peer.ratio or 1.0 for _, peer in dots]
    low = [ratio - (peer.ratio_ci_low or ratio) for ratio, (_, peer) in zip(ratios, dots, strict=True)]
    high = [(peer.ratio_ci_high or ratio) - ratio for ratio, (_, peer) in zip(ratios, dots, strict=True)]
    axes.errorbar(ratios, rows, xerr=(low, high), fmt="o", color=colour, markersize=6, elinewidth=1, label=name)


def _peer(case: KernelCase, name: str) -> KernelPeer | None:
    return next((peer for peer in case.peers if peer.name == name), None)
