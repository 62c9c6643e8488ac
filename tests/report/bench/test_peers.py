"""Other engines in every form of a bench document: rows, who is ahead, who could not run, columns of a CSV file."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import msgspec
import pytest

from kvtool.report.bench.bench import print_bench, tables, write_bench
from kvtool.report.bench.peers import engine_lines, engines_table
from kvtool.report.terminal import Terminal
from kvtool.results import BenchDocument, BenchPeer, PeerTurn, Summary, read_document, summarise
from tests.report.example import PATH

OURS_TTFT_S, OURS_TPOT_S = 0.1, 0.02


def peer(name: str, ttft: float, tpot: float | None, *, spread: float = 0.01, note: str = "") -> BenchPeer:
    """One that takes so many times as long as ours."""
    turns = [
        PeerTurn(
            ttft_s=ttft * OURS_TTFT_S,
            tpot_s=None if tpot is None else tpot * OURS_TPOT_S,
            ours_ttft_s=OURS_TTFT_S,
            ours_tpot_s=None if tpot is None else OURS_TPOT_S,
        )
    ] * 3
    interval = {} if tpot is None else {"tpot_ratio_ci_low": tpot - spread, "tpot_ratio_ci_high": tpot + spread}
    return BenchPeer(
        name=name,
        version="1.2",
        ttft_ms=summary(1e3 * ttft * OURS_TTFT_S),
        tpot_ms=None if tpot is None else summary(1e3 * tpot * OURS_TPOT_S),
        ttft_ratio=ttft,
        ttft_ratio_ci_low=ttft - spread,
        ttft_ratio_ci_high=ttft + spread,
        tpot_ratio=tpot,
        same_tokens=1.0,
        note=note,
        turns=turns,
        **interval,
    )


def summary(value: float) -> Summary:
    found = summarise([value] * 3)
    assert found is not None
    return found


ABSENT = BenchPeer(name="vllm", version=None, note="not importable: No module named 'vllm'")
WRONG = BenchPeer(name="sglang", version="0.5", same_tokens=0.25, note="different: 25% of its first 2 tokens are ours")


def document(*peers: BenchPeer) -> BenchDocument:
    """The example, with these peers beside every latency case."""
    found = read_document(PATH, BenchDocument)
    cases = [msgspec.structs.replace(c, peers=list(peers)) if c.part == "latency" else c for c in found.cases]
    return msgspec.structs.replace(found, cases=cases)


def raced(*peers: BenchPeer):
    return [case for case in document(*peers).cases if case.part == "latency"]


def test_ours_stands_above_those_that_ran() -> None:
    cases = raced(peer("transformers", 1.5, 2.5), ABSENT, WRONG)[:1]
    assert [row[-6:] for row in engines_table(cases).rows] == [
        ("kvtool", "100", "", "20.0", "", ""),
        ("transformers", "150", "1.50x", "50.0", "2.50x", "100%"),
        ("sglang", "-", "-", "-", "-", "WRONG 25%"),
    ]


def test_a_peer_that_is_ahead_is_named_with_its_points_and_with_chance() -> None:
    cases = raced(peer("transformers", 1.5, 0.8), peer("vllm", 0.99, 1.2, spread=0.05))[:1]
    ahead, chance, *_ = engine_lines(cases)
    where = f"{cases[0].inputs['input_len']} x {cases[0].inputs['batch_size']}"
    assert ahead == f"transformers is ahead at {where}, time per token (0.80x)."
    assert chance == f"vllm is ahead at {where}, first token (0.99x, within chance: 0.94x to 1.04x)."


def test_nobody_ahead_is_said_and_every_note_once() -> None:
    cases = raced(peer("transformers", 1.5, 2.5, note="grown"), ABSENT)
    assert engine_lines(cases) == [
        f"transformers: not ahead of ours at any point ({len(cases)} compared).",
        "transformers 1.2: grown.",
        "vllm: not importable: No module named 'vllm'.",
    ]


def test_those_that_could_not_run_leave_their_reasons_and_claim_nothing() -> None:
    table = engines_table(raced(ABSENT))
    assert table.rows == []
    assert "not importable" in table.note
    assert "ahead" not in table.note


def test_one_output_token_is_a_dash() -> None:
    ours, theirs = engines_table(raced(peer("transformers", 1.5, None))[:1]).rows
    assert ours[-3] == theirs[-3] == theirs[-2] == "-"


def test_without_peers_there_is_no_table() -> None:
    assert [table.title for table in tables(document())] == [
        table.title for table in tables(document(ABSENT)) if table.title != "Next to other engines"
    ]


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_keeps_to_the_width_and_breaks_no_cell(width: int) -> None:
    what = document(peer("transformers-static", 12.5, 0.8, note="generate does not compile on a CPU"), WRONG, ABSENT)
    console = Terminal(width=width, file=io.StringIO(), record=True, color_system=None)
    print_bench(what, console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    flattened = [" ".join(line.split()) for line in lines]
    assert [row for row in tables(what)[-1].rows if " ".join(filter(None, row)) not in flattened] == []


def test_csv_and_page_have_them_too(tmp_path: Path) -> None:
    what = document(peer("transformers", 1.5, 2.5), ABSENT)
    write_bench(what, tmp_path)
    assert read_document(tmp_path / "bench.json", BenchDocument) == what
    rows = list(csv.DictReader(io.StringIO((tmp_path / "bench.csv").read_text())))
    latency = [row for row in rows if row["part"] == "latency"]
    assert {row["peers.transformers.tpot_ratio"] for row in latency} == {"2.5"}
    assert {row["peers.vllm.note"] for row in latency} == {ABSENT.note}
    assert {row["peers.transformers.tpot_ratio"] for row in rows if row["part"] != "latency"} == {""}
    assert "Next to other engines" in (tmp_path / "report.html").read_text()
