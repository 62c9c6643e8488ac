"""The page of examples/accuracy: all 44 starts of starts.csv, whose log lines are the truth."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "accuracy"


@pytest.fixture(scope="module")
def page() -> str:
    done = subprocess.run([sys.executable, str(FOLDER / "accuracy.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def cells(page: str) -> list[list[str]]:
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| 0.1")]
    return [[cell.strip() for cell in line] for line in lines]


def pairs(cells: list[list[str]], column: int) -> list[tuple[float, float]]:
    """(predicted, logged) of a column."""
    texts = [row[column].replace(",", "").split(" / ") for row in cells]
    return [(float(predicted), float(logged)) for predicted, logged in texts if predicted != "-"]


def test_the_page_is_the_one_in_the_folder(page: str) -> None:
    assert page == (FOLDER / "README.md").read_text()


def test_every_start_is_there(cells: list[list[str]]) -> None:
    assert len(cells) == 44


def test_activations_come_within_four_percent(cells: list[list[str]]) -> None:
    assert all(abs(predicted / logged - 1) < 0.04 for predicted, logged in pairs(cells, 6))


def test_what_is_outside_of_torch_comes_within_a_sixteenth_of_a_gib(cells: list[list[str]]) -> None:
    assert all(abs(predicted - logged) < 1 / 16 for predicted, logged in pairs(cells, 7))


def test_pools_come_within_one_percent(cells: list[list[str]]) -> None:
    errors = [abs(predicted / logged - 1) for predicted, logged in pairs(cells, 8)]
    assert statistics.mean(errors) < 0.001
    assert max(errors) < 0.01


def test_tokens_and_concurrency_follow(cells: list[list[str]]) -> None:
    for column in (10, 11):
        assert all(abs(predicted / logged - 1) < 0.01 for predicted, logged in pairs(cells, column))
