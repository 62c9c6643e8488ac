"""The chart of hits over capacity: what its knees say stands inside the axes and apart."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from kvtool.replay.capacity import parse_capacity
from kvtool.replay.options import ReplayOptions
from kvtool.replay.replay import replay
from kvtool.replay.workers import Workers
from kvtool.report.replay.chart import replay_figure
from kvtool.results import ReplayCurve, ReplayDocument
from kvtool.workloads.traces import open_trace

TRACE = Path(__file__).parents[1] / "data" / "traces" / "mooncake_conversation_200.jsonl"


@pytest.fixture(scope="module")
def document() -> ReplayDocument:
    options = ReplayOptions(policies=("lru", "lru-plain"), capacities=(parse_capacity("100"),), workers=Workers(jobs=1))
    return replay(open_trace(TRACE), options)


def knees(document: ReplayDocument, *places: tuple[int, float]) -> ReplayDocument:
    """Its curves with their knees at these blocks and hits."""
    moved: list[ReplayCurve] = []
    for curve, (blocks, hits) in zip(document.curves, places, strict=True):
        assert curve.knee is not None
        knee = msgspec.structs.replace(curve.knee, capacity_blocks=blocks, block_hit_ratio=hits)
        moved.append(msgspec.structs.replace(curve, knee=knee))
    return msgspec.structs.replace(document, curves=moved)


@pytest.mark.parametrize("places", [((1, 0.036), (1, 0.036)), ((2, 0.01), (4000, 0.05)), ((4500, 0.05), (4000, 0.05))])
def test_what_knees_say_stands_inside_the_axes_and_apart(
    document: ReplayDocument, places: tuple[tuple[int, float], ...]
) -> None:
    figure = replay_figure(knees(document, *places))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts if "->" in text.get_text()]
    assert len(boxes) == 2
    assert not boxes[0].overlaps(boxes[1])
    inside = axes.get_window_extent()
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 for box in boxes)
