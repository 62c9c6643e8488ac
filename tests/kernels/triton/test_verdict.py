"""Which way is the fastest is timed once, remembered in memory and on disk, and never in the way of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kvtool.kernels.triton import products
from kvtool.kernels.triton.tiles.verdict import ROUNDS, Verdicts


class Timer:
    """Gives each way the time it was told, and counts."""

    def __init__(self, **times: float) -> None:
        self.times, self.timed = times, []
        self.ways = {name: (lambda name=name: name) for name in times}

    def __call__(self, way) -> float:
        self.timed.append(way())
        return self.times[way()]


def fastest(timer: Timer, file: Path, question: str = "1x2x3", may_time: bool = True) -> str:
    return Verdicts(file, timer).fastest(question, timer.ways, may_time=may_time)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"cublas": 1.0, "a": 0.97, "b": 0.9}, "b"),
        ({"cublas": 1.0, "a": 0.985, "b": 1.2}, "cublas"),  # not by two percent
        ({"cublas": 1.0, "a": 1.5, "b": 2.0}, "cublas"),
        ({"cublas": 1.0, "a": float("inf"), "b": 0.5}, "b"),
    ],
)
def test_the_first_way_is_taken_unless_another_clearly_wins(tmp_path: Path, times, expected: str) -> None:
    assert fastest(Timer(**times), tmp_path / "verdicts.json") == expected


def test_a_question_is_timed_once_and_other_processes_read_the_answer(tmp_path: Path) -> None:
    timer, file = Timer(cublas=2.0, a=1.0), tmp_path / "deep" / "verdicts.json"
    verdicts = Verdicts(file, timer)
    assert [verdicts.fastest("q", timer.ways, may_time=True) for _ in range(3)] == ["a"] * 3
    assert timer.timed == ["cublas", "a"] * (1 + ROUNDS)
    later = Timer(cublas=1.0, a=2.0)
    assert fastest(later, file, "q", may_time=False) == "a"
    assert fastest(later, file, "another") == "cublas"
    assert later.timed == ["cublas", "a"] * (1 + ROUNDS)
    assert [path.name for path in file.parent.iterdir()] == ["verdicts.json"]


def test_what_another_process_has_written_meanwhile_is_kept(tmp_path: Path) -> None:
    timer, file = Timer(cublas=2.0, a=1.0), tmp_path / "verdicts.json"
    slow, quick = Verdicts(file, timer), Verdicts(file, timer)
    slow.fastest("first", timer.ways, may_time=True)
    quick.fastest("second", timer.ways, may_time=True)
    slow.fastest("third", timer.ways, may_time=True)
    written = json.loads(file.read_text())
    assert set(written["verdicts"]) == set(written["times_ms"]) == {"first", "second", "third"}


def test_the_times_of_all_ways_stand_beside_a_verdict(tmp_path: Path) -> None:
    """A way that a card has no room for has none."""
    file = tmp_path / "verdicts.json"
    fastest(Timer(cublas=2.0, a=1.0, b=float("inf")), file, "q")
    assert json.loads(file.read_text())["times_ms"] == {"q": {"cublas": 2.0, "a": 1.0, "b": None}}


def test_nothing_is_timed_inside_a_capture_and_nothing_remembered_of_it(tmp_path: Path) -> None:
    timer, file = Timer(cublas=2.0, a=1.0), tmp_path / "verdicts.json"
    verdicts = Verdicts(file, timer)
    assert verdicts.fastest("q", timer.ways, may_time=False) == "cublas"
    assert (timer.timed, file.exists()) == ([], False)
    assert verdicts.fastest("q", timer.ways, may_time=True) == "a"
    assert verdicts.fastest("q", timer.ways, may_time=False) == "a"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b'{"version": 1}',
        b'{"version": 1, "verdicts": {"1x2x3": 7}}',
        b'{"version": 0, "verdicts": {"1x2x3": "cublas"}}',
        b'{"version": 1, "verdicts": {"1x2x3": "a way of long ago"}}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_file_is_timed_over(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "verdicts.json"
    file.write_bytes(content)
    assert fastest(Timer(cublas=2.0, a=1.0), file) == "a"
    assert json.loads(file.read_text())["verdicts"]["1x2x3"] == "a"


def test_a_folder_that_cannot_be_written_costs_only_the_memory_of_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    timer = Timer(cublas=2.0, a=1.0)
    verdicts = Verdicts(tmp_path / "file" / "verdicts.json", timer)
    assert [verdicts.fastest("q", timer.ways, may_time=True) for _ in range(2)] == ["a", "a"]
    assert timer.timed == ["cublas", "a"] * (1 + ROUNDS)


def test_a_question_says_all_that_an_answer_depends_on() -> None:
    x, weight, bias = torch.zeros(3, 64), torch.zeros(32, 64), torch.zeros(32)
    asked = {
        products.question(x, weight, None, None),
        products.question(x, weight, bias, None),
        products.question(x, weight, None, torch.zeros(3, 32)),
        products.question(x.half(), weight.half(), None, None),
        products.question(x[:2], weight, None, None),
        products.question(x, weight[:16], None, None),
        products.question(x[:, :32], weight[:, :32], None, None),
    }
    assert len(asked) == 7
    assert "4x32x64 float32 +bias" in asked
    assert products.question(torch.zeros(4, 64), weight, None, None) in asked  # rows count up to a power of two
