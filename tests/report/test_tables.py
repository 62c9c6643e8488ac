"""Tables on terminals of any width: no value is broken, what falls away is named, and nothing ends in blanks."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtool.report.fitting import to_rich
from kvtool.report.tables import Table, to_html
from kvtool.report.terminal import Terminal

ROWS = [
    ("tinyllama-1.1b-chat-v1.0", "gqa", "1,100,048,384", "174.877..190.377", "22,528"),
    ("qwen3-235b-a22b", "gqa", "235,093,634,560", "131,072..131,377", "192,512"),
]
TABLE = Table(
    title="Models",
    columns=("model", "kind", "params", "interval", "bytes\na token"),
    rows=ROWS,
    labels=2,
    note="bytes a token: what one more token adds for good, in layers that grow without a bound of their own.",
    spare=("params",),
)


def printed(table: Table, width: int) -> list[str]:
    console = Terminal(width=width, file=io.StringIO(), color_system=None)
    console.print(to_rich(table, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_no_value_is_broken_and_no_line_is_too_long_or_ends_in_blanks(width: int) -> None:
    lines = printed(TABLE, width)
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)
    words = set(" ".join(lines).split())
    for row in ROWS:
        assert row[0] in words
        for cell in row:
            assert cell in words or not any(cell.startswith(word) and len(word) > 4 for word in words)


def test_columns_fall_away_by_priority_and_the_last_line_says_which() -> None:
    assert "Not shown" not in " ".join(printed(TABLE, 80))
    assert printed(TABLE, 66)[-2:] == ["Not shown in 66 columns: params (see --json).", ""]
    assert " ".join(printed(TABLE, 52)[-3:-1]) == "Not shown in 52 columns: params, bytes a token (see --json)."
    assert "174.877..190.377" in " ".join(printed(TABLE, 52))


def test_headings_take_one_line_where_there_is_room() -> None:
    assert printed(TABLE, 100)[1].endswith("bytes a token")
    assert [line.split()[-1] for line in printed(TABLE, 80)[1:3]] == ["bytes", "token"]


def test_prose_wraps_under_itself() -> None:
    facts = Table(title="", columns=("", ""), rows=[("source", "one two three " * 10), ("id", "a/b")], labels=2)
    first, second, *_ = printed(facts, 40)
    assert first.startswith("source  one")
    assert len(second) - len(second.lstrip()) == len("source  ")


def test_a_heading_of_rows_spans_them() -> None:
    table = Table(title="t", columns=("case", "a", "b"), rows=[("a heading far longer than the rows", "", ""),
                  ("  x", "1", "2")], labels=1)  # fmt: skip
    assert printed(table, 40)[-3:] == ["a heading far longer than the rows", "  x   1  2", ""]


@given(
    cells=st.lists(st.tuples(*[st.text("ab 1,.", max_size=30)] * 4), min_size=1, max_size=4),
    width=st.integers(20, 120),
)
def test_every_cell_that_is_shown_is_whole(cells: list[tuple[str, str, str, str]], width: int) -> None:
    table = Table(title="", columns=("name", "x", "y", "z"), rows=cells, labels=1)
    lines = printed(table, width)
    shown = " ".join(" ".join(lines).split())
    hidden = shown.partition("Not shown")[2]
    for row in cells:
        if any(row[1:]):
            told = [cell for name, cell in zip("xyz", row[1:], strict=True) if f"{name}" not in hidden]
            assert all(" ".join(cell.split()) in shown for cell in told)


def test_a_page_has_every_column() -> None:
    assert to_html(TABLE).count("<th") >= len(TABLE.columns)


def test_two_columns_of_prose_give_way_before_a_value_is_broken() -> None:
    rows = [("in flight beside windows", "--max-num-batched-tokens below 8192, --no-async-scheduling", "575.96 MiB")]
    table = Table(title="", columns=("of which", "less of it with", "bytes"), rows=rows, labels=2)
    lines = printed(table, 60)
    assert max(map(len, lines)) <= 60
    assert any(line.endswith("575.96 MiB") for line in lines)
