"""Every recorded plan of vLLM 0.33.0, reproduced to the block and to the character."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest

from kvtool.catalog.models_yaml import load_catalogue
from kvtool.results import SizeEngine
from kvtool.sizing.engines.vllm import plan, size_engine
from tests.sizing.engines.vllm.recorded import Case, cases


def engine_of(case: Case) -> SizeEngine:
    return size_engine(plan(case.model, case.options, pool_bytes=case.pool_bytes))


def test_there_are_all_recorded_plans() -> None:
    assert len(cases()) == 627
    assert sum(not case.fits for case in cases()) == 19
    assert len({case.config for case in cases()}) == 35


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_the_plan_is_vllms(case: Case) -> None:
    found = plan(case.model, case.options, pool_bytes=case.pool_bytes)
    engine, expected = size_engine(found), case.expected
    assert groups_of(engine, expected) == expected["groups"]
    for name in ("bytes_per_block", "blocks_per_request", "max_num_seqs"):
        assert getattr(engine, name) == expected[name], name
    assert engine.num_blocks == case.flags.get("num_gpu_blocks_override", expected["num_blocks"])
    assert found.inputs.in_flight_tokens == expected["in_flight_tokens"]
    assert engine.exact_given_pool is True
    if case.fits:
        _check_start(engine, expected)
    else:
        _check_refusal(engine, expected)


def _check_start(engine: SizeEngine, expected: dict[str, Any]) -> None:
    for name in ("max_model_len", "block_size", "scheduler_block_size", "max_concurrency", "kv_tp_replicas"):
        assert getattr(engine, name) == expected[name], name
    assert engine.log_line == expected["line"]
    assert f"{engine.gpu_kv_cache_tokens:,} tokens" in expected["line"]
    assert engine.refusal is None


def _check_refusal(engine: SizeEngine, expected: dict[str, Any]) -> None:
    """vLLM's own sentences, then the bytes that are missing."""
    assert engine.refusal is not None
    assert engine.refusal.startswith(expected["line"])
    assert engine.refusal.endswith("bytes are missing.")
    assert "\n" not in engine.refusal
    assert (engine.max_concurrency, engine.gpu_kv_cache_tokens, engine.log_line) == (None, None, None)
    estimate = f"the estimated maximum model length is {engine.estimated_max_model_len}."
    assert (estimate in expected["line"]) == (engine.estimated_max_model_len is not None)


def groups_of(engine: SizeEngine, expected: dict[str, Any]) -> list[list[object]]:
    """The groups as they are recorded; layer indices only where they are."""
    indices = len(expected["groups"][0]) == 9
    rows = [
        [
            group["kind"],
            0 if group["layer_kinds"] == [group["kind"]] else group["layer_kinds"],
            group["layers"],
            group["block_size"],
            group["page_size_bytes"],
            group["page_size_bytes_total"],
            group["blocks_per_request"],
            *([group["layer_indices"]] if indices else []),
        ]
        for group in engine.groups or []
    ]
    return [[len(list(same)), *row] for row, same in groupby(rows)]


def _in_catalogue() -> list[Case]:
    """One plain case of each recorded model that is in the catalogue too."""
    catalogue = load_catalogue()
    found = {case.config: case for case in reversed(cases()) if case.tag == "base"}
    return [case for case in found.values() if catalogue.find(case.config.replace("--", "/")) is not None]


def test_most_recorded_models_are_in_the_catalogue() -> None:
    assert len(_in_catalogue()) >= 30


@pytest.mark.parametrize("case", _in_catalogue(), ids=lambda case: case.config)
def test_the_catalogue_gives_the_same_plan_as_the_config(case: Case) -> None:
    model = load_catalogue().get(case.config.replace("--", "/"))
    assert size_engine(plan(model, case.options, pool_bytes=case.pool_bytes)) == engine_of(case)
