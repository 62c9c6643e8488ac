"""The server of a bench document: its times beside the floor and our own engine, its hits, and what failed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kvtool.report.bench.cases import labels, tpots_ms, ttfts_ms, varying
from kvtool.report.cells import DASH, p50, percent, rate, tail
from kvtool.report.charts import COLOURS, GREY, LABEL_POINTS
from kvtool.report.tables import Table
from kvtool.results import BenchDocument, EndpointCase, Summary
from kvtool.units import format_ms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRID = ("scenario", "input_len", "hit_rate")
SERIES = {"floor": GREY, "kvtool": COLOURS[1], "server": COLOURS[0]}


def endpoint_cases(document: BenchDocument) -> list[EndpointCase]:
    """Those of a server."""
    return [case for case in document.cases if isinstance(case, EndpointCase)]


def endpoint_tables(document: BenchDocument) -> list[Table]:
    """None where no server was measured."""
    cases = endpoint_cases(document)
    return [times_table(cases), hits_table(cases)] if cases else []


def times_table(cases: Sequence[EndpointCase]) -> Table:
    """Floor, ours, the server's; and how many requests it answered."""
    keys = varying(cases, GRID)
    beside = {
        "TPOT ms\nfloor": [format_ms(case.endpoint.floor_tpot_ms) for case in cases],
        "TPOT ms\nours": [format_ms(case.endpoint.own_tpot_ms) for case in cases],
        "goodput": [percent(case.endpoint.goodput_ratio) for case in cases],
    }
    told = {name: cells for name, cells in beside.items() if set(cells) != {DASH}}
    columns = {
        "TTFT ms\np50": [p50(case.metrics.ttft_ms) for case in cases],
        "TTFT ms\n+-": [tail(case.metrics.ttft_ms, ttfts_ms(case)) for case in cases],
        **{name: cells for name, cells in told.items() if name != "goodput"},
        "TPOT ms\nserver": [p50(case.metrics.tpot_ms) for case in cases],
        "TPOT ms\n+-": [tail(case.metrics.tpot_ms, tpots_ms(case)) for case in cases],
        "output\ntok/s": [rate(case.endpoint.output_tokens_per_s) for case in cases],
        **{name: cells for name, cells in told.items() if name == "goodput"},
        "failed": [failed(case) for case in cases],
    }
    return Table(
        title=f"{cases[0].endpoint.server} at --url: how fast",
        columns=(*map(title_of, keys), *columns),
        rows=[
            (*labels(case, keys), *cells)
            for case, cells in zip(cases, zip(*columns.values(), strict=True), strict=True)
        ],
        labels=len(keys),
        spare=("output\ntok/s", "TTFT ms\n+-", "TPOT ms\n+-"),
        note=" ".join(filter(None, _notes(cases))),
    )


def title_of(key: str) -> str:
    """An input's name over its column."""
    return {"input_len": "input", "hit_rate": "hits"}.get(key, key.replace("_", "\n"))


def _notes(cases: Sequence[EndpointCase]) -> Iterator[str]:
    yield "As a client sees it, from request to tokens. failed: of all requests, and in no time."
    if any(case.endpoint.own_tpot_ms for case in cases):
        yield "ours: kvtool's own engine on this machine."
    if (overhead := cases[0].endpoint.client_overhead_ms) is not None:
        yield (
            f"This client takes {format_ms(overhead)} ms of a request, by a server that answers at once, at 200 a "
            "second."
        )


def failed(case: EndpointCase) -> str:
    """`0 of 48`, and of what kind they are."""
    told = case.endpoint
    kinds = f" ({', '.join(told.errors)})" if told.errors else ""
    return f"{sum(told.errors.values())} of {told.requests}{kinds}"


def hits_table(cases: Sequence[EndpointCase]) -> Table:
    """What share of the prompts was asked for, made, and found."""
    keys = varying(cases, GRID[:2])
    rows = [
        (
            *labels(case, keys),
            percent(case.endpoint.hit_rate_requested, digits=1),
            percent(case.endpoint.hit_rate_rounded, digits=1),
            percent(case.endpoint.hit_rate, digits=1),
            f"{case.endpoint.hit_tokens_expected:,}",
            *(DASH if count is None else f"{count:,}" for count in counted(case)),
            case.endpoint.cache_state,
        )
        for case in cases
    ]
    blocks = ", ".join(str(size) for size in sorted({case.endpoint.block_tokens for case in cases}))
    return Table(
        title="Prefix hits, as the server counts them",
        columns=(
            *map(title_of, keys),
            *("hits\nasked", "hits\nmade", "hits\nfound", "tokens\nmade", "by\nusage", "by\n/metrics", "pre-\nempted"),
            "cache\nwas",
        ),
        rows=rows,
        labels=len(keys),
        spare=("pre-\nempted",),
        note=f"made: rounded down to whole blocks of {blocks}, as prompts were then generated. found: share of prompt "
        f"tokens. usage: in each answer; /metrics: counters around the runs. {DASH}: the server does not say. fresh: "
        "nobody had sent these prompts before.",
    )


def counted(case: EndpointCase) -> tuple[int | None, int | None, int | None]:
    """Hit tokens by either source, and preemptions."""
    return case.endpoint.usage_hit_tokens, case.endpoint.metrics_hit_tokens, case.endpoint.preemptions


def endpoint_findings(document: BenchDocument) -> list[str]:
    """What each case showed, failures first."""
    cases = endpoint_cases(document)
    wrong = [
        f"{case.name}: {failed(case)} requests failed; the times are of the others."
        for case in cases
        if case.endpoint.errors
    ]
    return [*wrong, *filter(None, map(_beside, cases))]


def _beside(case: EndpointCase) -> str:
    told, tpot = case.endpoint, case.metrics.tpot_ms
    if tpot is None or (told.floor_tpot_ms is None and told.own_tpot_ms is None):
        return ""
    parts = [f"TPOT {format_ms(tpot.p50)} ms"]
    if told.floor_tpot_ms:
        parts.append(f"{tpot.p50 / told.floor_tpot_ms:.2f} times the floor")
    if told.own_tpot_ms:
        parts.append(f"{tpot.p50 / told.own_tpot_ms:.2f} times that of kvtool's own engine")
    return f"{case.name}: {', '.join(parts)}."


def draw_server_ttft(figure: Figure, axes: Axes, cases: Sequence[Any]) -> None:
    """Medians of each case: ours, the server's."""
    own = [case.endpoint.own_ttft_ms for case in cases]
    _draw_bars(axes, cases, {"kvtool": own, "server": [_median(case.metrics.ttft_ms) for case in cases]})
    axes.set_ylabel("ms")


def draw_server_tpot(figure: Figure, axes: Axes, cases: Sequence[Any]) -> None:
    """Medians of each case: the floor, ours, the server's."""
    floor = [case.endpoint.floor_tpot_ms for case in cases]
    own = [case.endpoint.own_tpot_ms for case in cases]
    server = [_median(case.metrics.tpot_ms) for case in cases]
    _draw_bars(axes, cases, {"floor": floor, "kvtool": own, "server": server})
    axes.set_ylabel("ms a token")


def _draw_bars(axes: Axes, cases: Sequence[Any], series: Mapping[str, Sequence[float | None]]) -> None:
    """A group a case of a bar a series, with its value on top."""
    shown = {name: values for name, values in series.items() if any(values)}
    width = 0.8 / max(len(shown), 2)
    for place, (name, values) in enumerate(shown.items()):
        at = [number + (place - (len(shown) - 1) / 2) * width for number in range(len(cases))]
        bars = axes.bar(at, [value or 0.0 for value in values], width, label=name, color=SERIES[name])
        axes.bar_label(bars, [format_ms(value) if value else "" for value in values], fontsize=LABEL_POINTS - 1)
    axes.set_xticks(range(len(cases)), [_tick(case) for case in cases], fontsize=LABEL_POINTS - 1)
    axes.margins(y=0.12)
    if len(shown) > 1:
        axes.legend(frameon=False, ncols=len(shown), fontsize=LABEL_POINTS, loc="upper right")


def _tick(case: EndpointCase) -> str:
    """What was sent, a line each: `prompts`, `1,024 tokens`, `87.5 % repeated`, `1 at a time`."""
    length, limit = case.inputs.get("input_len"), case.inputs.get("concurrency")
    told = (
        case.name.split("/")[1],
        f"{length:,} tokens" if length else "",
        f"{100 * case.endpoint.hit_rate_rounded:.3g} % repeated",
        f"{limit} at a time" if limit else "",
    )
    return "\n".join(filter(None, told))


def _median(summary: Summary | None) -> float | None:
    return None if summary is None else summary.p50
