"""Real configs, and random changes of them, through kvtool's planner and through SGLang 0.5.23's own configurators
(tools/sglang_pools.py, tools/random_pools.py)."""

from __future__ import annotations

import csv
import gzip
import json
from functools import cache
from typing import Any

import pytest

from tests.sizing.engines.sglang.pools import DATA, changed_model, differences

TOLD = ("max_total_num_tokens", "swa_tokens", "state_slots", "requests", "refusal")


@cache
def _cases() -> list[dict[str, Any]]:
    with (DATA / "sglang_pools.csv").open(newline="") as file:
        rows = [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(file)]
    return [
        row | {"dsa_backend": row["dsa_backend"] or "", "expected": {name: row[name] for name in TOLD}} for row in rows
    ]


def _value(text: str) -> Any:
    if text in ("", "True", "False"):
        return {"": None, "True": True, "False": False}[text]
    try:
        return int(text)
    except ValueError:
        return float(text) if text[0].isdigit() and "." in text else text


@cache
def _random() -> list[dict[str, Any]]:
    with gzip.open(DATA / "sglang_random.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("config", sorted({case["config"] for case in _cases()}))
def test_the_same_tokens_slots_and_requests(config: str) -> None:
    cases = [case for case in _cases() if case["config"] == config]
    assert len(cases) >= 10
    assert {str(case): found for case in cases if (found := differences(changed_model(case), case))} == {}


def test_random_models_and_starts_too() -> None:
    """81 of 800, all of which are the same: every fifth of the first half, and one that caps windows between pages."""
    assert len(_random()) == 81
    wrong = {i: found for i, case in enumerate(_random()) if (found := differences(changed_model(case), case))}
    assert wrong == {}


def test_some_of_sglangs_starts_fail_and_some_split_their_pools() -> None:
    """So that agreement means something."""
    for cases, share in ((_cases(), 1), (_random(), 4)):
        assert sum(bool(case["expected"].get("refusal")) for case in cases) >= 10 // share
        assert sum(bool(case["expected"].get("swa_tokens")) for case in cases) >= 25 // share
        assert sum(bool(case["expected"].get("state_slots")) for case in cases) >= 25 // share
