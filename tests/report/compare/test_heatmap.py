from __future__ import annotations

import pytest
from matplotlib.colors import to_hex

from kvtool.report.compare.heatmap import Cell, Group, gib, heat_map


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (1 << 26, "0.0625"), (5 << 28, "1.25"), (144 << 30, "144"), (1 << 41, "2,048")]
)
def test_gib_in_three_digits(count: int, text: str) -> None:
    assert gib(count) == text


def test_colours_go_with_the_logarithm() -> None:
    """Ten times as much is as far along the scale wherever it is; the number on a dark cell is white."""
    cells = [Cell(count=10**power) for power in (3, 6, 9)]
    axes = heat_map("t", "s", ["a", "b", "c"], [Group(heading="g", rows=[("r", cells)])]).axes[0]
    from matplotlib import colormaps

    wanted = [to_hex(colormaps["YlGnBu"](share)) for share in (0.0, 0.5, 1.0)]
    assert [to_hex(patch.get_facecolor()) for patch in axes.patches] == wanted
    assert [text.get_color() for text in axes.texts[1:]] == ["black", "black", "white"]


def test_nearly_equal_cells_look_nearly_equal() -> None:
    rows = [("r", [Cell(count=1000), Cell(count=1010)])]
    axes = heat_map("t", "s", ["a", "b"], [Group(heading="g", rows=rows)]).axes[0]
    first, second = (patch.get_facecolor() for patch in axes.patches)
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) < 0.03


def test_nothing_to_store_is_white_and_breaks_no_scale() -> None:
    axes = heat_map("t", "s", ["a"], [Group(heading="g", rows=[("r", [Cell(count=0)])])]).axes[0]
    assert to_hex(axes.patches[0].get_facecolor()) == "#ffffff"
    assert axes.texts[1].get_text() == "0"


def test_the_subtitle_stands_under_the_title_as_in_other_charts() -> None:
    figure = heat_map("t", "what it shows", ["a"], [Group(heading="g", rows=[("r", [Cell(count=1)])])])
    (subtitle,) = [text for text in figure.texts if text.get_text() == "what it shows"]
    assert subtitle.get_position()[0] == 0.01
    assert not figure.axes[0].get_title(loc="left")
