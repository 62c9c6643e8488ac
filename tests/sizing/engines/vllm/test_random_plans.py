"""Random models through kvtool's planner and through those of vLLM's releases themselves (tools/random_plans.py)."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kvtool.sizing.engines.vllm.versions import HISTORY
from tests.sizing.engines.vllm.random_plans import differences

DATA = Path(__file__).parents[3] / "data"


@cache
def _cases(name: str = "vllm_random.jsonl.gz") -> list[dict[str, Any]]:
    with gzip.open(DATA / name, "rt") as file:
        return [json.loads(line) for line in file]


def _kinds(case: dict[str, Any]) -> set[str]:
    return {layer["kind"] for layer in case["layers"]}


@pytest.mark.parametrize("part", range(4))
def test_every_figure_is_vllms(part: int) -> None:
    wrong = {number: found for number, case in enumerate(_cases()[part::4]) if (found := differences(case))}
    assert wrong == {}


def test_they_are_of_every_sort() -> None:
    """So that agreement means something."""
    cases = _cases()
    assert len(cases) == 375
    assert sum("refusal" in case["expected"] for case in cases) >= 50
    assert sum(bool(case["drafts"]) for case in cases) >= 100
    assert sum(case["flags"]["pp"] > 1 for case in cases) >= 100
    for kind in ("full", "sliding", "chunked", "mla", "mamba1", "mamba2", "gated_delta_net", "kda", "short_conv"):
        assert sum(kind in _kinds(case) for case in cases) >= 15, kind


def test_every_release_that_is_exact_plans_as_it_did_itself() -> None:
    """30 of the 400 drawn models that each release planned itself, none of which differed."""
    cases = _cases("vllm_random_releases.jsonl.gz")
    wrong = {number: found for number, case in enumerate(cases) if (found := differences(case))}
    assert wrong == {}
    held = {case["version"] for case in cases}
    assert held == {*HISTORY.exact} - {"0.32", "0.33"}
    assert all(sum(case["version"] == version for case in cases) == 30 for version in held)


def test_older_releases_plan_by_rules_of_their_own() -> None:
    """What 0.28, 0.30 and 0.31 themselves made of four drawn models: windows in blocks of 16, a length fitted to all
    blocks, no checkpoint of a Mamba-2 state. None of it holds in 0.32.
    """
    cases = [json.loads(line) for line in (DATA / "vllm_releases.jsonl").read_text().splitlines()]
    assert [differences(case) for case in cases] == [[]] * 4
    assert all(differences(case | {"version": "0.32"}) for case in cases)
