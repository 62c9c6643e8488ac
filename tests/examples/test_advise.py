"""Answers of an advice beside what its commands measured: how both are read, and that the page shows them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "advise"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check", FOLDER / "check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check"] = module
    spec.loader.exec_module(module)
    return module


def test_what_is_measured_of_a_document(check: ModuleType) -> None:
    arms = {"no_cache": [0.5, 0.6, 0.9], "paged": [0.2, 0.6, 0.3]}  # x2.5, 1 and 3 in turn
    assert check.times_without(
        {
            "cases": [
                {"inputs": {"arm": arm}, "samples": [{"e2e_s": each} for each in e2e_s]} for arm, e2e_s in arms.items()
            ]
        }
    ) == pytest.approx(2.5)
    times = (("cached", 0.3), ("cached", 0.1), ("cached", 0.2), ("uncached", 0.8), ("repeat", 9.0))
    samples = [{"arm": arm, "ttft_s": seconds} for arm, seconds in times]
    assert check.prefill_spared({"cases": [{"samples": samples}]}) == pytest.approx(0.75)


def test_an_answer_holds_on_its_side_of_the_number_that_decided(check: ModuleType) -> None:
    one = {"situation": "", "question": "", "answer": "", "unit": "", "command": "", "against": 1.05}
    assert check.Check(**one, advised=4.0, measured=2.0).holds
    assert not check.Check(**one, advised=4.0, measured=1.0).holds
    assert not check.Check(**one, advised=1.0, measured=1.2).holds


def test_the_page_shows_what_was_measured_and_every_answer_holds(check: ModuleType) -> None:
    page = (FOLDER.parents[1] / "docs" / "advise.md").read_text()
    found = check.read()
    assert {one.question for one in found} == {asked[1] for asked in check.ASKED}
    assert all(line in page for line in check.lines(found))
    assert all(one.holds for one in found), [one for one in found if not one.holds]
