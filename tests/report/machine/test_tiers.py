"""A tiers document in every form: tables, sentences, a chart that names its lines, a page, and a profile."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import msgspec
import pytest

from kvtool.report.machine.tiers import print_tiers, write_tiers
from kvtool.report.machine.tiers_chart import speed_lines, tiers_figure
from kvtool.report.machine.tiers_sentences import findings
from kvtool.report.terminal import Terminal
from kvtool.results import TiersDocument, read_document, read_profile
from kvtool.system.errors import KvtoolError
from kvtool.units import KIB, MIB
from tests.report.machine.example import DOCUMENT, ROWS, even


def printed(document: TiersDocument, width: int = 100) -> str:
    out = io.StringIO()
    print_tiers(document, Terminal(file=out, width=width, no_color=True))
    return out.getvalue()


def test_the_tables_have_a_row_a_size_and_a_column_a_depth() -> None:
    text = printed(DOCUMENT)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "requests full block, 1 MiB 0.500 2.50 1.50" in lines
    assert "requests chunk, 8 KiB 0.100 - -" in lines
    assert "gathered pages full block, 1 MiB down 32 6.00 6.60 10.0" in lines
    assert "disk 48 3.00 4.00" in lines
    assert max(map(len, text.splitlines())) <= 100
    assert max(map(len, printed(DOCUMENT, 60).splitlines())) <= 60


def test_the_findings_answer_first() -> None:
    assert findings(DOCUMENT) == [
        "dram: loading beats computing from the first page on",
        "disk: loading never pays below 48 tokens, and pays from there on",
        "dram down: gathered pages move 3.00x as fast as page by page",
        "dram up beside a matrix product: copies take 1.50x",
        "disk: blocks of 1 MiB are read at 2.50 GB/s with 16 in flight, 0.500 with 1",
    ]
    never = msgspec.structs.replace(DOCUMENT, rows=[], break_even=[even("disk", None)])
    assert findings(never) == ["disk: loading never beats computing up to 64 tokens"]


def test_the_chart_draws_the_best_of_each_size() -> None:
    assert speed_lines(ROWS) == {
        ("dram", "up"): [(8 * KIB, 1.0), (MIB, 9.0)],
        ("disk", "up"): [(8 * KIB, 0.1), (MIB, 2.5)],
        ("disk", "down"): [(MIB, 1.5)],
    }
    figure = tiers_figure(DOCUMENT)
    told = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert {"dram up: 9.00", "disk up: 2.50", "disk down: 1.50", "computing", "from disk"} <= set(told)
    assert len(tiers_figure(msgspec.structs.replace(DOCUMENT, break_even=[])).axes) == 1


def test_every_form_is_written_and_the_json_is_a_profile(tmp_path: Path) -> None:
    write_tiers(DOCUMENT, tmp_path, command="kvtool tiers")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "tiers.csv", "tiers.json", "tiers.png"]
    assert read_document(tmp_path / "tiers.json", TiersDocument) == DOCUMENT
    assert read_profile(tmp_path / "tiers.json").up_gbps == {"dram": 20.0, "disk": 2.5}
    rows = list(csv.DictReader((tmp_path / "tiers.csv").read_text().splitlines()))
    assert [float(found["gbps_p50"]) for found in rows] == [found.gbps.p50 for found in ROWS]
    page = (tmp_path / "report.html").read_text()
    assert "loading never pays below 48 tokens" in page


def test_a_profile_without_tiers_is_refused(tmp_path: Path) -> None:
    write_tiers(msgspec.structs.replace(DOCUMENT, tiers=[], break_even=[]), tmp_path)
    with pytest.raises(KvtoolError, match="has no tier that was measured to its end: run kvtool tiers again"):
        read_profile(tmp_path / "tiers.json")
