from __future__ import annotations

import io
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text

from kvtool.report.files import png_bytes
from kvtool.report.size.budget import (
    GLYPHS,
    Segment,
    budget_figure,
    columns,
    decision,
    print_budget,
    segments,
    verdict,
    would_fit,
)
from kvtool.report.terminal import Terminal
from kvtool.results import Calibration, SizeRow
from kvtool.results.size import FITS_WITHIN_MARGIN
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.size import size
from kvtool.units import GIB
from tests.sizing.example import CARD, DEEPSEEK_V3, LLAMA_8B, LLAMA_8B_POOL_BYTES

OPTIONS = SizeOptions(contexts=(8192, 131072), batch_sizes=(1, 16), gpu=CARD)


def rows(**options: object) -> list[SizeRow]:
    return size(LLAMA_8B, options=replace(OPTIONS, **options)).rows  # type: ignore[arg-type]


def printed(some: list[SizeRow], width: int = 80) -> list[str]:
    console = Terminal(width=width, file=io.StringIO(), color_system=None)
    print_budget(some, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_segments_are_the_whole_card() -> None:
    parts = segments(rows()[0])
    assert [part.name for part in parts] == [
        "weights", "activations", "reserve", "KV used", "KV free", "beyond the budget"
    ]  # fmt: skip
    sizes = {part.name: part.size_bytes for part in parts}
    assert sum(sizes.values()) == CARD.memory_bytes
    assert (sizes["KV used"], sizes["KV free"]) == (GIB, LLAMA_8B_POOL_BYTES - GIB)
    assert sizes["beyond the budget"] == 80_000_000_000 - 73_600_000_000


def test_a_cache_that_does_not_fit_takes_all_the_room() -> None:
    last = rows()[-1]
    (used,) = [part for part in segments(last) if part.overfull]
    assert (used.name, used.size_bytes) == ("KV used", LLAMA_8B_POOL_BYTES)
    assert decision(last) == "no: 204 GiB short"
    assert decision(rows()[0]) == "fits, 50.9 GiB to spare"


def test_what_would_do_stands_under_the_decision() -> None:
    last = rows()[-1]
    told = would_fit(last, ["--tp 8: gains 9 GiB; 8 cards in place of 1"])
    assert told == (
        "128k x 16 in bf16: no: 204 GiB short. This would do:\n  --tp 8: gains 9 GiB; 8 cards in place of 1"
    )
    assert would_fit(last, ["--batch-size 3: 3 of 16", "--tp 8: 8 cards"]).splitlines() == [
        "128k x 16 in bf16: no: 204 GiB short. Each of these alone would do:",
        "  --batch-size 3: 3 of 16",
        "  --tp 8: 8 cards",
    ]
    assert would_fit(last, []).endswith("short.")


def test_weights_that_do_not_fit_are_marked() -> None:
    (row,) = size(DEEPSEEK_V3, options=replace(OPTIONS, contexts=(4096,), batch_sizes=(1,))).rows
    parts = segments(row)
    assert [part.name for part in parts if part.overfull] == ["weights"]
    assert [part.name for part in parts] == ["weights", "activations", "reserve"]


def test_no_bar_without_a_known_pool() -> None:
    assert printed(size(LLAMA_8B).rows) == []
    unknown = size(replace(LLAMA_8B, architecture=None), options=OPTIONS)
    assert printed(unknown.rows) == []
    assert budget_figure(unknown) is None


@given(sizes=st.lists(st.integers(0, 1 << 40), min_size=6, max_size=6).filter(any), width=st.integers(6, 100))
def test_columns_fill_the_width_and_leave_no_part_out(sizes: list[int], width: int) -> None:
    parts = [Segment(name, size) for name, size in zip(GLYPHS, sizes, strict=True) if size]
    counts = columns(parts, width)
    assert sum(counts) == width
    assert min(counts) >= 1


@given(
    terms=st.lists(st.integers(1, 1 << 30), min_size=3, max_size=3),
    pool=st.integers(2, 1 << 30),
    width=st.integers(6, 100),
    data=st.data(),
)
def test_equal_terms_are_as_wide_in_every_bar(terms: list[int], pool: int, width: int, data: st.DataObject) -> None:
    """Whatever the cache of a row takes of the pool, weights, activations and reserve are drawn alike."""
    names = list(GLYPHS)

    def drawn(used: int) -> list[int]:
        sizes = [*terms, used, pool - used, pool]
        return columns([Segment(name, size) for name, size in zip(names, sizes, strict=True) if size], width)

    one, other = drawn(data.draw(st.integers(1, pool))), drawn(data.draw(st.integers(1, pool)))
    assert one[:3] == other[:3]


def test_a_verdict_within_the_margin_says_by_how_much() -> None:
    fits = rows()[0]
    missing, margin = 300 << 20, 900 << 20
    fit = msgspec.structs.replace(fits.fit, verdict=FITS_WITHIN_MARGIN, missing_bytes=missing, margin_bytes=margin)
    told = decision(msgspec.structs.replace(fits, fit=fit))
    assert told == "fits within the margin: 300 MiB short, +-900 MiB"


def test_a_start_that_the_engine_refuses_is_none_of_those_that_fit() -> None:
    """128k tokens take 16 GiB in bf16 and 8 in fp8, so that a pool of 12 GiB holds them in fp8 alone."""
    start = EngineOptions(name="vllm", kv_cache_memory_bytes=12 * GIB)
    some = rows(contexts=(8192,), batch_sizes=(1,), kv_cache_dtypes=("bf16", "fp8"), engine=start)
    assert [row.engine.refusal is None for row in some] == [False, True]
    assert (verdict(some, [[], []]) or "").startswith("1 x CARD-80GB, 8k x 1 in fp8: fits")
    both = rows(contexts=(8192, 4096), batch_sizes=(1,), kv_cache_dtypes=("bf16", "fp8"), engine=start)
    first, last = (verdict(both, [[]] * 4) or "").splitlines()
    assert first.startswith("1 x CARD-80GB: both fit; the largest, 8k x 1 in fp8")
    assert last == "Would not start in bf16."


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_bars_are_as_long_as_each_other_and_keep_to_the_width(width: int) -> None:
    lines = printed(rows(), width)
    assert max(map(len, lines)) <= min(width, 100)
    bars = [line for line in lines if "| " in line]
    assert len(bars) == 4
    assert len({line.index("| ") for line in bars}) == 1
    assert len({line.count("█") for line in bars}) == 1
    assert bars[0].endswith("| fits, 50.9 GiB to spare" if width == 60 else "| KV 1 GiB fits, 50.9 GiB to spare")
    assert bars[3].count("■") > bars[1].count("■") > bars[0].count("■") == 1
    assert "·" not in bars[3]
    legend = "█ weights 15 GiB ▓ activations 936 MiB ▒ reserve 805 MiB ■ KV · free"
    assert legend in " ".join(" ".join(lines).split())


def test_what_was_measured_is_said() -> None:
    measured = Calibration(source="a log", activation_bytes=GIB, reserve_bytes=GIB)
    legend = " ".join(printed(rows(calibration=measured), 120))
    assert "▓ activations 1 GiB measured  ▒ reserve 1 GiB measured" in legend
    assert "weights 15 GiB  ▓" in legend


@pytest.mark.parametrize("dtypes", [("bf16",), ("bf16", "fp8", "int8", "fp32")])
def test_labels_of_the_chart_do_not_overlap(dtypes: tuple[str, ...]) -> None:
    document = size(LLAMA_8B, options=replace(OPTIONS, kv_cache_dtypes=dtypes))
    figure = budget_figure(document)
    assert figure is not None
    (axes,) = figure.axes
    texts = [text.get_text() for text in axes.texts]
    assert len(texts) == min(12, len(document.rows))
    assert texts[:4] == [
        *("fits, 50.9 GiB to spare", "fits, 35.9 GiB to spare", "fits, 35.9 GiB to spare", "no: 204 GiB short")
    ]
    figure.draw_without_rendering()
    ticks = [tick for tick in (*axes.get_xticklabels(), *axes.get_yticklabels()) if tick.get_text()]
    legend = figure.legends[0].get_window_extent()
    boxes = [Text.get_window_extent(text) for text in (*axes.texts, *ticks, axes.xaxis.label)]
    boxes = [box for box in (*boxes, legend) if box.width]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert not any(axes.get_window_extent().overlaps(Text.get_window_extent(text)) for text in figure.texts)
    right, top = figure.canvas.get_width_height()
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= right and box.y1 <= top for box in boxes)
    assert png_bytes(figure).startswith(b"\x89PNG")
