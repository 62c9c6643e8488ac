"""The race with `vllm bench serve`: its documents are of the same prompts, and the page says what they say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
RUNS = EXAMPLES / "reports" / "server-race"


@pytest.fixture(scope="module")
def race() -> ModuleType:
    spec = importlib.util.spec_from_file_location("race", EXAMPLES / "server" / "race.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["race"] = module
    spec.loader.exec_module(module)
    return module


def test_both_tools_measured_the_same_requests(race: ModuleType) -> None:
    runs = race.runs_of(RUNS)
    assert len(runs) >= 2
    for run in runs:
        ours, theirs = race.turns_of(run)
        assert len(ours) == len(theirs) == race.TURNS
        for a, b in zip(ours, theirs, strict=True):
            assert [sample.prompt_tokens for sample in a] == [sample.prompt_tokens for sample in b]
            assert {sample.output_tokens for sample in (*a, *b)} == {race.OUTPUT_LEN}
            assert len(a) == race.PROMPTS


def test_neither_tool_is_shown_to_read_more_than_the_other(race: ModuleType) -> None:
    for ratio in race.ratios(RUNS).values():
        assert 0.9 <= ratio.low < 1 < ratio.high <= 1.1


def test_the_page_shows_what_the_documents_say(race: ModuleType) -> None:
    page = (EXAMPLES.parent / "docs" / "endpoint.md").read_text()
    assert all(line in page for line in race.lines(RUNS))
