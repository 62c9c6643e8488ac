"""How the memory of one GPU is spoken for: a bar for each row of a size document, in a terminal and as a chart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from kvtool.report.charts import COLOURS, GREY, LABEL_POINTS, RED, new_figure
from kvtool.report.tables import WIDE
from kvtool.results import SizeDocument, SizeFit, SizeRow
from kvtool.results.size import FITS_WITHIN_MARGIN
from kvtool.units import GIB, format_bytes, format_bytes_short, format_length

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.text import Text

MAX_BARS = 12  # of a chart
NARROWEST_BAR = 20
WEIGHTS, ACTIVATIONS, RESERVE, USED, FREE = "weights", "activations", "reserve", "KV used", "KV free"
UNUSED = "beyond the budget"
GLYPHS = {WEIGHTS: "█", ACTIVATIONS: "▓", RESERVE: "▒", USED: "■", FREE: "·", UNUSED: " "}
STYLES = {WEIGHTS: "blue", ACTIVATIONS: "magenta", RESERVE: "yellow", USED: "green", FREE: "dim", UNUSED: "dim"}
FILLS = {
    WEIGHTS: COLOURS[0],
    ACTIVATIONS: COLOURS[3],
    RESERVE: COLOURS[4],
    USED: COLOURS[2],
    FREE: "#dcefe8",
    UNUSED: "#ededed",
}


@dataclass(frozen=True, slots=True)
class Segment:
    """One part of a GPU's memory. `overfull` marks a cache, or weights, that do not fit into what is left for them."""

    name: str
    size_bytes: int
    overfull: bool = False


def segments(row: SizeRow) -> list[Segment]:
    """The parts of one GPU's memory in order, empty ones left out; none where the pool is not known."""
    fit = row.fit
    if fit.kv_pool_bytes is None or fit.memory_bytes is None:
        return []
    used = min(row.kv.bytes_per_gpu, fit.kv_pool_bytes)
    sizes = {
        WEIGHTS: fit.weights_bytes or 0,
        ACTIVATIONS: fit.activation_bytes or 0,
        RESERVE: fit.reserve_bytes or 0,
        USED: used,
        FREE: fit.kv_pool_bytes - used,
    }
    sizes[UNUSED] = max(0, fit.memory_bytes - sum(sizes.values()))
    overfull = None if not fit.missing_bytes else USED if used else WEIGHTS
    return [Segment(name, size, name == overfull) for name, size in sizes.items() if size]


def columns(parts: Sequence[Segment], width: int) -> list[int]:
    """Columns of each part, in all `width`: in proportion, but at least one each.

    Each part ends where the sum up to it does, so that the same first parts are as wide in every bar of a card.
    """
    total = sum(part.size_bytes for part in parts)
    places, ends, below = list(GLYPHS), [0], 0
    for part in parts:
        below += part.size_bytes
        behind = len(places) - places.index(part.name) - 1  # room for a column of each that may follow
        ends.append(min(max(round(below * width / total), ends[-1] + 1), width - behind))
    ends[-1] = width
    return [end - start for start, end in pairwise(ends)]


def decision(row: SizeRow) -> str:
    """`fits, 50.2 GiB to spare`, `no: 1.7 GiB short`, or `fits within the margin: 300 MiB short, +-900 MiB`."""
    fit = row.fit
    left = (fit.kv_pool_bytes or 0) - row.kv.bytes_per_gpu
    missing = fit.missing_bytes or 0
    room = f"{format_bytes_short(missing)} short" if missing else f"{format_bytes_short(left)} to spare"
    if fit.verdict == FITS_WITHIN_MARGIN:
        return f"fits within the margin: {room}, +-{format_bytes_short(fit.margin_bytes or 0)}"
    return f"no: {room}" if missing else f"fits, {room}"


def verdict(
    rows: Sequence[SizeRow], remedies: Sequence[Sequence[str]], passing: Sequence[int | None] = ()
) -> str | None:
    """The answer in one sentence: whether the rows fit their card, and the one that leaves least, or is missing least.

    None where no row has a card whose room is known. `remedies` has what would make each row fit, `passing` the context
    at which its cache passes the weights.
    """
    refused = next((row.engine for row in rows if row.engine.refusal), None)
    if refused is not None and all(row.engine.refusal for row in rows):
        return _with_ways(f"Would not start: {refused.refusal}".removesuffix(".") + ".", next(iter(remedies), ()))
    known = [row for row in rows if row.fit.fits is not None and row.fit.kv_pool_bytes is not None]
    judged = [row for row in known if row.engine.refusal is None]
    if not judged:
        return None
    dtypes = list(dict.fromkeys(row.inputs.kv_cache_dtype for row in known if row.engine.refusal))
    unstarted = [f"Would not start in {' and '.join(dtypes)}."] if dtypes else []
    if len(judged) == 1:
        (ways,) = [some for row, some in zip(rows, remedies, strict=True) if row is judged[0]]
        only = would_fit(judged[0], ways, _passing_of(judged[0], rows, passing))
        return "\n".join([f"{_where(judged[0])}, {only}", *unstarted])
    largest = max((row for row in judged if row.fit.fits), key=lambda row: row.kv.bytes_per_gpu, default=None)
    beyond = [] if largest is None else _passes(largest, _passing_of(largest, rows, passing))
    return "\n".join([f"{_where(judged[0])}: {_of_several(judged, largest)}", *unstarted, *beyond])


def _where(row: SizeRow) -> str:
    return f"{row.inputs.num_gpus} x {row.inputs.gpu}"


def _of_several(judged: Sequence[SizeRow], largest: SizeRow | None) -> str:
    """How many rows fit, and the `largest` of them; where none does, the one that is missing least."""
    if largest is None:
        least = min(judged, key=lambda row: row.fit.missing_bytes or 0)
        return f"none of {len(judged)} fits; the least, {_case(least)}: {decision(least)}."
    room = decision(largest)
    told = _case(largest) + (f", with {room[6:]}." if room.startswith("fits, ") else f": {room}.")
    fitting = sum(bool(row.fit.fits) for row in judged)
    if fitting < len(judged):
        return f"{fitting} of {len(judged)} fit; the largest that does, {told}"
    return f"{'both' if len(judged) == 2 else f'all {len(judged)}'} fit; the largest, {told}"


def _case(row: SizeRow) -> str:
    return f"{_label(row)} in {row.inputs.kv_cache_dtype}"


def _passing_of(row: SizeRow, rows: Sequence[SizeRow], passing: Sequence[int | None]) -> int | None:
    return next((tokens for other, tokens in zip(rows, passing, strict=False) if other is row), None)


def would_fit(row: SizeRow, ways: Sequence[str], passing: int | None = None) -> str:
    """`128k x 16 in bf16: no: 205 GiB short.`, and a line for each change that would do; of a row that fits, a line of
    where its cache passes the weights.
    """
    return _with_ways("\n".join([f"{_case(row)}: {decision(row)}.", *_passes(row, passing)]), ways)


def _passes(row: SizeRow, passing: int | None) -> list[str]:
    each = f" x {row.inputs.batch_size:,}" if row.inputs.batch_size > 1 else ""
    return [] if passing is None else [f"Its cache passes the weights at {passing:,} tokens{each}."]


def _with_ways(answer: str, ways: Sequence[str]) -> str:
    if not ways:
        return answer
    told = "This would do:" if len(ways) == 1 else "Each of these alone would do:"
    return "\n".join([f"{answer} {told}", *(f"  {way}" for way in ways)])


def _memory(row: SizeRow) -> int:
    return row.fit.memory_bytes or 0


def _label(row: SizeRow) -> str:
    return f"{format_length(row.inputs.context)} x {row.inputs.batch_size:,}"


def print_budget(rows: Sequence[SizeRow], console: Console) -> None:
    """A line for each row of one model and cache dtype, and what its marks mean; nothing without a card."""
    from rich.text import Text

    rows = [row for row in rows if segments(row)]
    if not rows:
        return
    label_width = max(len(_label(row)) for row in rows)
    room = min(console.width, WIDE) - label_width - 6
    ends = [f"KV {format_bytes_short(row.kv.bytes_per_gpu)} {decision(row)}" for row in rows]
    if room - max(map(len, ends)) < NARROWEST_BAR:
        ends = [decision(row) for row in rows]
    width = room - max(map(len, ends))
    console.print(Text(f"Memory of one {rows[0].inputs.gpu}, {format_bytes_short(_memory(rows[0]))}", style="bold"))
    for row, end in zip(rows, ends, strict=True):
        line = Text(f" {_label(row):>{label_width}} ", no_wrap=width >= len(GLYPHS))
        if width >= len(GLYPHS):
            _append_bar(line, segments(row), width)
        console.print(line.append(f"| {end}", style="red" if row.fit.missing_bytes else ""))
    console.print(Text("  ".join(_legend(rows[0].fit)), style="dim"))


def _append_bar(line: Text, parts: Sequence[Segment], width: int) -> None:
    for part, count in zip(parts, columns(parts, width), strict=True):
        line.append(GLYPHS[part.name] * count, style="red" if part.overfull else STYLES[part.name])


def _legend(fit: SizeFit) -> Iterator[str]:
    """The terms that all rows have in common with their bytes, and the marks of the others."""
    terms = {WEIGHTS: fit.weights_bytes, ACTIVATIONS: fit.activation_bytes, RESERVE: fit.reserve_bytes}
    for name, size in terms.items():
        if size:
            measured = " measured" if f"{_TERM_OF[name]}_bytes" in (fit.measured or ()) else ""
            yield f"{GLYPHS[name]} {name} {format_bytes_short(size)}{measured}"
    yield f"{GLYPHS[USED]} KV"
    yield f"{GLYPHS[FREE]} free"


_TERM_OF = {WEIGHTS: "weights", ACTIVATIONS: "activation", RESERVE: "reserve"}


def budget_figure(document: SizeDocument) -> Figure | None:
    """One stacked bar for each of the first rows; None where no row has a budget."""
    rows = [row for row in document.rows if segments(row)][:MAX_BARS]
    if not rows:
        return None
    first = rows[0]
    where = f"one of {first.inputs.num_gpus} x {first.inputs.gpu}" if first.inputs.num_gpus > 1 else first.inputs.gpu
    figure, (axes,) = new_figure(
        f"{first.model.id}: memory of one GPU",
        subtitle=f"{where}; sequences as context x batch size",
        height_in=2.5 + 0.42 * len(rows),
    )
    for place, row in enumerate(rows):
        _draw_bar(axes, place, row)
    _finish(axes, rows)
    return figure


def _draw_bar(axes: Axes, place: int, row: SizeRow) -> None:
    start = 0.0
    for part in segments(row):
        size = part.size_bytes / GIB
        fill = RED if part.overfull else FILLS[part.name]
        axes.barh(place, size, left=start, height=0.6, color=fill, edgecolor="white", linewidth=0.8)
        start += size
    colour = RED if row.fit.missing_bytes else "#333333"
    axes.annotate(
        decision(row),
        (start, place),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        fontsize=LABEL_POINTS,
        annotation_clip=False,
    )


def _finish(axes: Axes, rows: Sequence[SizeRow]) -> None:
    """Names of the bars, the limit that may be used, and a legend below that no bar can touch."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    fit = rows[0].fit
    several = len({row.inputs.kv_cache_dtype for row in rows}) > 1
    names = [f"{_label(row)}{f' {row.inputs.kv_cache_dtype}' if several else ''}" for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, max(sum(part.size_bytes for part in segments(row)) for row in rows) / GIB)
    axes.set_xlabel("GiB")
    axes.grid(False, axis="y")
    limit = (fit.usable_bytes or 0) / GIB
    axes.axvline(limit, color=GREY, linestyle="--", linewidth=1.2)
    terms = {WEIGHTS: fit.weights_bytes, ACTIVATIONS: fit.activation_bytes, RESERVE: fit.reserve_bytes}
    handles: list[Patch | Line2D] = [
        Patch(color=fill, label=f"{name} {format_bytes(terms[name] or 0)}" if terms.get(name) else name)
        for name, fill in FILLS.items()
    ]
    if any(row.fit.missing_bytes for row in rows):
        handles.append(Patch(color=RED, label="does not fit"))
    handles.append(Line2D([], [], color=GREY, linestyle="--", label=f"usable {format_bytes(fit.usable_bytes or 0)}"))
    axes.figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=LABEL_POINTS, frameon=False)
