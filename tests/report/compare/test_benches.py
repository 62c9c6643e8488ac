from __future__ import annotations

from io import StringIO
from pathlib import Path

import msgspec
import pytest

from kvtool.compare.documents import NamedDocument, compare_documents
from kvtool.report.compare.benches import (
    compare_figure,
    compare_html,
    compare_tables,
    findings,
    format_value,
    widest_interval,
)
from kvtool.report.compare.compare import print_compare, write_compare
from kvtool.report.terminal import Terminal
from kvtool.results import CompareDocument, read_document
from tests.compare.example import document


@pytest.fixture(scope="module")
def compared() -> CompareDocument:
    others = [document(noise_seed=2, tpot_factor=1.2), document(noise_seed=3, seed=4)]
    return compare_documents(
        NamedDocument("base.json", document(noise_seed=1)),
        [NamedDocument("slow.json", others[0]), NamedDocument("seed.json", others[1])],
    )


@pytest.mark.parametrize("width", [80, 100])
def test_what_is_printed_fits_the_terminal_and_says_all(compared: CompareDocument, width: int) -> None:
    console = Terminal(file=StringIO(), width=width)
    print_compare(compared, console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert text.startswith("slow.json: 0 metrics better, ")
    for words in (
        "warning: seed.json: inputs differ: seed 0 against 4",
        "slow.json against base.json",
        "slower by",
        "TPOT",
    ):
        assert words in " ".join(text.split())


def test_a_long_table_keeps_the_rows_that_differ(compared: CompareDocument) -> None:
    (slow, _) = compare_tables(compared, max_lines=5)
    assert "rows show no difference" in slow.note
    assert all(row[-1] not in ("same", "no difference shown") for row in slow.rows)
    assert len(compare_tables(compared, max_lines=100)[0].rows) == 2 + 2 * 8, "two cases of eight metrics, each headed"


def test_brackets_in_names_are_no_markup() -> None:
    odd = NamedDocument("run[1].json", document(noise_seed=2, tpot_factor=1.2))
    console = Terminal(file=StringIO(), width=100)
    print_compare(compare_documents(NamedDocument("[/base]", document()), [odd]), console)
    assert "run[1].json against [/base]" in console.file.getvalue()


def test_findings_count_and_name_the_largest_change(compared: CompareDocument) -> None:
    slow, _ = findings(compared)
    assert slow.startswith("slow.json: 0 metrics better, ")
    assert "the largest change is" in slow
    assert "latency/" in slow


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "ms", "-"), (12.34, "ms", "12.3 ms"), (4096.0, "bytes", "4 KiB"), (0.5, "ratio", "50.0%"),
        (12.34, "tokens/s", "12.3/s"), (12345.6, "tokens/s", "12,346/s"),
    ],
)  # fmt: skip
def test_values_are_shown_with_their_unit(value: float | None, unit: str, text: str) -> None:
    assert format_value(value, unit) == text


def test_the_chart_has_a_panel_for_each_timing(compared: CompareDocument) -> None:
    figure = compare_figure(compared)
    assert [axes.get_title(loc="left").split(":")[0] for axes in figure.axes] == ["TTFT", "TPOT", "E2E"]
    low, high = figure.axes[0].get_xlim()
    assert low <= 0.95
    assert high >= 1.05


def test_the_page_stands_alone(compared: CompareDocument) -> None:
    page = compare_html(compared, b"\x89PNG")
    assert "http" not in page
    assert page.count("<img") == page.count("data:image/png;base64,") == 1
    assert "slow.json against base.json" in page


def test_everything_is_written_under_out(compared: CompareDocument, tmp_path: Path) -> None:
    paths = write_compare(compared, tmp_path / "out")
    assert [path.name for path in paths] == ["compare.json", "compare.csv", "compare.png", "report.html"]
    assert read_document(paths[0], CompareDocument) == compared
    assert len(paths[1].read_text().splitlines()) == 1 + len(compared.rows)
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_what_a_comparison_hangs_on_is_its_widest_interval(compared: CompareDocument) -> None:
    widths = [
        (row.ci_high - row.ci_low) / 2 / row.ratio
        for row in compared.rows
        if row.ci_low is not None and row.ci_high is not None and row.ratio
    ]
    told = widest_interval(compared)
    assert told is not None
    assert told.endswith(f"its interval is {max(widths):.1%} either way")
    assert widest_interval(msgspec.structs.replace(compared, rows=[])) is None


def test_the_axis_of_ratios_is_logarithmic_around_1_and_says_so(compared: CompareDocument) -> None:
    for axes in compare_figure(compared).axes:
        low, high = axes.get_xlim()
        assert axes.get_xscale() == "log"
        assert low * high == pytest.approx(1)
        assert "log" in axes.get_xlabel()
        assert len([tick for tick in axes.get_xticks() if low <= tick <= high]) >= 3


def test_the_page_warns_first_and_names_its_command_and_data(compared: CompareDocument) -> None:
    warned = msgspec.structs.replace(compared, warnings=["a load of 0.97 cores"])
    page = compare_html(warned, b"", "kvtool compare a b")
    places = [
        page.index(words)
        for words in ("a load of 0.97 cores", "kvtool compare a b", 'href="compare.json"', "metrics better")
    ]
    assert places == sorted(places)
