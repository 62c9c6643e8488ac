"""What runs on a card, as far as it runs without one: tests that end their process, timelines, what was compiled, and
how an archive becomes a card's folder."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from tools import readme
from tools.gpu.archive import ARCHIVE, unpacked
from tools.gpu.cases import Case, LacksError, file_name
from tools.gpu.journal import DONE, FAILED, LOST, SKIPPED, Event, Journal
from tools.gpu.pieces import compiled, profile, variants
from tools.gpu.pieces.watch import error_line
from tools.gpu.plan import PLANS, Piece
from tools.gpu.publish import publish, publish_tiles, slug
from tools.gpu.run import Run
from tools.gpu.store import Store
from tools.gpu.timeline import Launch, as_table

TESTS = """
import os, pytest
pytestmark = pytest.mark.gpu

def test_one(): pass
def test_wrong(): assert 1 == 2
def test_cuda(): raise RuntimeError("CUDA error: an illegal memory access was encountered")
@pytest.mark.parametrize("size", [1, 2])
def test_two(size): assert size < 2, "too large"
def test_dies(): os._exit(7)
def test_skipped(): pytest.skip("this card has no fp8")
@pytest.fixture
def broken(): raise ValueError("no pool")
def test_setup(broken): pass
def test_last(): pass
"""


@dataclass(frozen=True)
class Tests(Piece):
    """By two processes side by side."""

    __test__ = False

    def command(self) -> list[str]:
        return [sys.executable, "-m", "tools.gpu.pieces.tests", "--processes", "2", "--piece", self.name]


@pytest.mark.parametrize(
    "piece", [piece for pieces in PLANS.values() for piece in pieces if piece.module != "tests"], ids=lambda p: p.name
)
def test_every_piece_has_cases_of_different_names(
    piece: Piece, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a card they can be listed: nothing of it is asked before a case runs."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    module = import_module(f"tools.gpu.pieces.{piece.module}")
    given = Namespace(folder=tmp_path, spare=tmp_path, piece=piece.name, words=list(piece.words))
    names = [file_name(case.name) for case in module.cases(given)]
    assert names
    assert len(set(names)) == len(names)


def test_tests_that_end_their_process_cost_no_other_test(tmp_path: Path) -> None:
    """A lost card ends a process on purpose, a crash does without; both times another goes on behind them."""
    file = tmp_path / "test_on_card.py"
    file.write_text(TESTS)
    (tmp_path / "test_unimportable.py").write_text("import no_such_module\n")
    stores = Store(tmp_path / "work", tmp_path / "spare"), Store(tmp_path / "out", tmp_path / "spare")
    made = Run([Tests("tests", "", 60, "tests", (str(tmp_path),))], *stores, 1000.0, say=lambda line: None)
    made.all()
    ended = {
        name.rpartition("::")[2].rpartition("/")[2]: event
        for name, event in Journal(stores[0], "tests").ended().items()
    }
    assert {name: event.state for name, event in ended.items()} == {
        "test_one": DONE,
        "test_wrong": FAILED,
        "test_cuda": FAILED,
        "test_two[1]": DONE,
        "test_two[2]": FAILED,
        "test_dies": LOST,
        "test_skipped": SKIPPED,
        "test_setup": FAILED,
        "test_last": DONE,
        "test_unimportable.py": FAILED,
    }
    assert ended["test_wrong"].error == "assert 1 == 2"
    assert "illegal memory access" in str(ended["test_cuda"].traceback)
    assert made.outcomes[0].ended == "done"
    found = set(unpacked(tmp_path / "out" / ARCHIVE))
    assert {"tests/log-1.txt", "tests/0/log-2.txt", "tests/1/log-1.txt", "tests/1/events.jsonl"} <= found
    assert any(name.startswith("tests/0/junit-") for name in found)


def test_of_a_traceback_the_line_is_told_that_says_what_went_wrong() -> None:
    assert error_line("tests/x.py:3: in test\n    f()\nE   ValueError: no\nE   more") == "ValueError: no"
    assert error_line("something\nelse\n") == "else"


def test_a_timeline_tells_of_one_step_what_was_launched_how_long_and_after_what_wait() -> None:
    """Two steps of three launches; of two that overlap the second waited for nothing."""
    step = [Launch("attend", 10.0, 4.0), Launch("multiply", 13.0, 2.0), Launch("attend", 17.0, 1.0)]
    again = [Launch(one.name, one.start_us + 20.0, one.busy_us) for one in step]
    found = as_table([*again, *step], num_steps=2)
    assert found["launches"] == 3
    assert found["busy_us"] == pytest.approx(7.0)
    assert found["gap_us"] == pytest.approx((2.0 + 12.0 + 2.0) / 2)
    assert [(row["name"], row["count"], row["busy_us"]) for row in found["kernels"]] == [
        ("attend", 2.0, 5.0),
        ("multiply", 1.0, 2.0),
    ]
    assert found["last_step"] == [["attend", 0.0, 4.0], ["multiply", 3.0, 2.0], ["attend", 7.0, 1.0]]
    assert as_table([], 2)["launches"] == 0


def test_what_was_compiled_is_a_row_a_kernel_the_worst_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, local in (("decode_kernel", 0), ("prefill_kernel", 96)):
        folder = tmp_path / name[:3]
        folder.mkdir()
        (folder / f"{name}.cubin").write_bytes(str(local).encode())
        (folder / f"{name}.json").write_text(json.dumps({"name": name, "num_warps": 8, "shared": 1024, "hash": "x"}))
        (folder / f"{name}.ptx").write_text("wgmma.mma_async.sync\nwgmma.mma_async.sync\n")
    monkeypatch.setattr(compiled, "usage", lambda binary: {"registers": 168, "local_bytes": int(binary.read_text())})
    result = compiled.registers(tmp_path)
    assert result is not None
    assert [row["name"] for row in result["kernels"]] == ["prefill_kernel", "decode_kernel"]
    assert result["kernels"][0] | {"tma": 0} == result["kernels"][0]
    assert (result["kernels"][0]["wgmma"], result["kernels"][0]["shared"]) == (2, 1024)


def test_another_way_stands_beside_the_usual_one_or_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the usual one went wrong, its document is the one that is judged, and says so."""
    entered: list[str] = []
    monkeypatch.setattr(variants, "WAYS", {"in order": lambda: nullcontext(entered.append("in order"))})
    journal = Journal(Store(tmp_path, tmp_path / "spare"), "steps")
    well, wrong = Case("well", lambda: {"assumptions": ["a"]}), Case("wrong", lambda: {"assumptions": ["a"]})
    journal.tell(Event("well", DONE))
    journal.tell(Event("wrong", FAILED))
    assert variants.beside("in order", well, journal).run() == {
        "variant": "in order",
        "document": {"assumptions": ["a"]},
    }
    with pytest.raises(LacksError, match="well went well"):
        variants.instead("in order", well, journal).run()
    said = ["launched in order, since the usual way went wrong on this card", "a"]
    assert variants.instead("in order", wrong, journal).run() == {"assumptions": said}
    assert entered == ["in order"] * 2


def test_a_tool_that_is_not_here_is_said_to_be_lacking_and_one_that_fails_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "tool", lambda name: None)
    with pytest.raises(LacksError, match="ncu is not here"):
        profile.ncu("decode", tmp_path)
    script = tmp_path / "compute-sanitizer"
    script.write_text("#!/bin/sh\necho '========= Invalid __global__ read'\nexit ${CODE}\n")
    script.chmod(0o755)
    monkeypatch.setattr(profile, "tool", lambda name: str(script))
    for code, message in (("9", "memcheck found errors: =+ Invalid"), ("1", "exited with 1: =+ Invalid")):
        monkeypatch.setenv("CODE", code)
        with pytest.raises((AssertionError, RuntimeError), match=message):
            profile.sanitizer("small-decode", tmp_path)
    monkeypatch.setenv("CODE", "0")
    found = profile.sanitizer("small-decode", tmp_path)
    assert found is not None
    assert found["code"] == 0


def test_an_archive_becomes_the_folder_of_its_card(tmp_path: Path) -> None:
    """Documents of one case each become one of all, with its table and chart; what the README shows is in it."""
    document = json.loads((readme.REPORTS / "cpu" / "kernels.json").read_text())
    document["environment"]["gpu"] = "NVIDIA H200"
    cases = document["cases"][:2]
    found = {
        f"kernels/{number}.json": json.dumps(document | {"cases": [case]}).encode() for number, case in enumerate(cases)
    }
    found |= {
        "peers/0.json": json.dumps(document | {"cases": cases[:1]}).encode(),
        "kernels/by-pointers.json": json.dumps({"variant": "by pointers", "document": document}).encode(),
        "smoke/environment.json": b'{"cpus": 16}',
        "verdicts/products-x.json": b'{"version": 1, "verdicts": {"q": "a"}, "times_ms": {"q": {"cublas": 2, "a": 1}}}',
        "steps/timeline-of-a-model.json": b'{"launches": 9}',
        "steps/torn.json": b"{",
        "run.md": b"| piece |\n",
    }
    folder = tmp_path / "h200"
    assert publish(found, tmp_path) == folder
    targets = json.loads((folder / "targets.json").read_text())["targets"]
    written = json.loads((folder / "kernels.json").read_text())
    assert [case["name"] for case in written["cases"]] == [case["name"] for case in cases]
    assert len(json.loads((folder / "peers" / "kernels.json").read_text())["cases"]) == 1
    assert json.loads((folder / "verdicts.json").read_text()) == {"q": {"cublas": 2, "a": 1}}
    assert json.loads((folder / "timelines.json").read_text()) == [{"launches": 9}]
    assert {"kernels.png", "kernels.csv", "environment.json", "run.md"} <= {path.name for path in folder.iterdir()}
    assert f"Of {len(targets)} aims: 0 ambitious, 0 met, 0 missed, {len(targets)} not measured" in readme.card(folder)
    assert "![kernels on h200](examples/reports/h200/kernels.png)" in readme.card(folder)


def test_an_archive_of_nothing_makes_no_folder(tmp_path: Path) -> None:
    assert publish({"run.md": b""}, tmp_path) is None
    assert publish_tiles({"tune/a-case.json": b'{"card": "NVIDIA H200"}'}, tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_tiles_that_were_tuned_go_where_kernels_look_for_them(tmp_path: Path) -> None:
    assert publish_tiles({"tune/nvidia-h200.json": b'{"card": "NVIDIA H200"}'}, tmp_path) == (
        tmp_path / "nvidia-h200.json"
    )
    assert (tmp_path / "nvidia-h200.json").read_bytes() == b'{"card": "NVIDIA H200"}'


@pytest.mark.parametrize(
    ("card", "folder"),
    [("NVIDIA H200", "h200"), ("NVIDIA H100 80GB HBM3", "h100-80gb-hbm3"), ("Quadro/T4", "quadro-t4")],
)
def test_a_card_has_a_folder_of_its_name(card: str, folder: str) -> None:
    assert slug(card) == folder
