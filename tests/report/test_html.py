"""The page stands alone: well-formed, escaped, no network, no script, both colour schemes."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from kvtool.report import html
from kvtool.report.bench.bench import bench_html
from kvtool.report.machine.machine import ceiling_table, environment_table
from kvtool.report.tables import Table, to_html
from tests.report.example import ENVIRONMENT, example_document

VOID = {"meta", "img", "br", "hr"}


class Balance(HTMLParser):
    """Raises where a tag closes what is not open."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(text):
    parser = Balance()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


def test_a_report_is_one_well_formed_file_without_network_or_script():
    text = bench_html(example_document())
    assert not {"script", "link", "iframe"} & parsed(text).tags
    assert set(re.findall(r'src="([^"]{0,22})', text)) == {"data:image/png;base64,"}
    assert re.findall(r'href="([^"]*)', text) == ["bench.json", "bench.csv", "bench.png"]  # files beside the page
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text


def test_a_report_holds_results_environment_definitions_and_assumptions():
    document = example_document()
    text = bench_html(document)
    for heading in ("Charts", "Tables", "Environment", "Definitions", "Assumptions"):
        assert f"<h2>{heading}</h2>" in text
    for meaning in (*document.definitions.values(), *document.assumptions):
        assert html.escape(meaning) in text
    assert "455 (447 to 461)" in text
    assert "Example CPU" in text
    assert text.count("<img alt=") == 4


def test_text_is_escaped_everywhere():
    evil = '<b>"x" & y'
    table = Table(title=evil, columns=(evil,), rows=[(evil,)], note=evil)
    parts = [
        to_html(table),
        html.key_points([evil]),
        html.definitions({evil: evil}),
        html.charts({evil: b"x"}),
        html.section(evil, ["<p>ready</p>"]),
    ]
    text = html.page(evil, evil, parts)
    parsed(text)
    assert evil not in text
    assert "<b>" not in text
    assert "<p>ready</p>" in text


def test_empty_parts_leave_no_heading():
    assert html.section("Charts", [html.charts({}), html.bullets([]), html.definitions({})]) == ""
    assert html.key_points([]) == ""


def test_a_table_without_headings_has_no_heading_row():
    assert "<th" not in to_html(environment_table(ENVIRONMENT)).split("<tbody>")[0].replace("<thead>", "")


def test_the_environment_leaves_out_what_is_not_known_and_keeps_unnamed_facts():
    rows = dict(environment_table({"gpu": None, "cpu": "Example CPU", "memory_bytes": 1 << 30, "new_fact": 3}).rows)
    assert rows == {"processor": "Example CPU", "memory": "1 GiB", "new fact": "3"}


def test_the_ceiling_names_every_kernel_in_its_unit():
    roofline = {
        "read_gbps": 25.0,
        "copy_gbps": 17.0,
        "tflops": 1.5,
        "dtype": "bfloat16",
        "read_buffer_bytes": 420 << 20,
        "llc_bytes": None,
        "kernels": {"read sum": 25.0, "copy": 17.0, "matmul 512x512x512": 1.5},
        "samples": {"read sum": 9, "copy": 8, "matmul 512x512x512": 7},
    }
    table = ceiling_table(roofline)
    assert ("  matmul 512x512x512", "1.50 TFLOP/s", "7 turns") in table.rows
    assert table.note == "Streamed over 420 MiB, against a cache of unknown size."


def test_a_chart_takes_the_room_that_its_words_need() -> None:
    """A PNG of 2,000 pixels: no neighbour takes from the 900 below which nothing in it could be read."""
    shown = html.charts({"wide": bytes(16) + (2000).to_bytes(4, "big")})
    assert 'style="flex: 1 1 900px"' in shown
    assert 'style="min-width: 900px"' in shown
