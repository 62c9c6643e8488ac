"""Real configs through kvtool's planner and through SGLang 0.5.23's own configurators (tools/sglang_pools.py)."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from kvtool.catalog.gpus import find_gpu
from kvtool.catalog.resolve import resolve_model
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.sglang import plan
from kvtool.sizing.parallel import Parallel

DATA = Path(__file__).parents[3] / "data"
CARDS = {"": None, "flashmla_kv": "h200", "trtllm": "b200"}  # that have this backend by default


def _cases() -> list[dict[str, str]]:
    with (DATA / "sglang_pools.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _number(text: str) -> int | None:
    return int(text) if text else None


def _options(case: dict[str, str]) -> EngineOptions:
    card = CARDS[case["dsa_backend"]]
    return EngineOptions(
        name="sglang",
        gpu=find_gpu(card) if card else None,
        parallel=Parallel(tp=int(case["tp"]), pp=int(case["pp"]), dcp=int(case["dcp"]), dp=int(case["attention_dp"])),
        enable_dp_attention=int(case["attention_dp"]) > 1,
        kv_cache_dtype="bf16" if case["element_bytes"] == "2" else "fp8",
        block_size=int(case["page_size"]),
        max_model_len=int(case["context"]),
        chunked_prefill_size=8192,
        swa_full_tokens_ratio=float(case["swa_ratio"]),
        mamba_full_memory_ratio=float(case["mamba_ratio"]),
        max_mamba_cache_size=_number(case["max_mamba_cache_size"]),
        max_running_requests=_number(case["max_running_requests"]),
        max_total_tokens=_number(case["max_total_tokens"]),
        enable_prefix_caching=case["radix_cache"] == "True",
    )


@pytest.mark.parametrize("config", sorted({case["config"] for case in _cases()}))
def test_the_same_tokens_slots_and_requests(config: str) -> None:
    model = resolve_model(str(DATA / "vllm_configs" / f"{config}.json"))
    cases = [case for case in _cases() if case["config"] == config]
    assert len(cases) >= 10
    for case in cases:
        planned = plan(model, _options(case), pool_bytes=int(case["pool_bytes"]))
        if case["refusal"]:
            assert planned.allocation is None, case
            continue
        assert planned.refusal is None, case
        allocation = planned.allocation
        assert allocation is not None
        assert allocation.max_total_num_tokens == int(case["max_total_num_tokens"]), case
        assert allocation.tokens.swa == _number(case["swa_tokens"]), case
        assert allocation.tokens.state_slots == _number(case["state_slots"]), case
        assert allocation.max_running_requests == int(case["requests"]), case


def test_some_of_sglangs_starts_fail_and_some_split_their_pools() -> None:
    """So that agreement means something."""
    cases = _cases()
    assert sum(bool(case["refusal"]) for case in cases) >= 10
    assert sum(bool(case["swa_tokens"]) for case in cases) >= 25
    assert sum(bool(case["state_slots"]) for case in cases) >= 25
