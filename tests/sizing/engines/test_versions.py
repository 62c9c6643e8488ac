"""Rules by release: which hold when, and how far a release was checked."""

from __future__ import annotations

import pytest

from kvtool.catalog.gpus import find_gpu
from kvtool.catalog.hf_config import read_config
from kvtool.catalog.models_yaml import load_catalogue
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.sglang.backend import choose_backend
from kvtool.sizing.engines.sglang.versions import HISTORY as SGLANG
from kvtool.sizing.engines.sglang.versions import rules_at as sglang_rules
from kvtool.sizing.engines.versions import parse_release
from kvtool.sizing.engines.vllm.plan import plan
from kvtool.sizing.engines.vllm.rules import VllmRules
from kvtool.sizing.engines.vllm.versions import HISTORY, rules_at
from kvtool.system.errors import KvtoolError
from kvtool.units import GIB
from tests.sizing.engines.vllm.recorded import DATA

CATALOGUE = load_catalogue()


@pytest.mark.parametrize("history", [HISTORY, SGLANG])
def test_every_change_names_a_rule_and_says_where_it_is_from(history: object) -> None:
    changes = history.changes  # type: ignore[attr-defined]
    assert all(hasattr(history.rules, one.rule) and one.what and one.source for one in changes)  # type: ignore[attr-defined]
    assert [parse_release(one.since) for one in changes] == sorted(parse_release(one.since) for one in changes)


def test_a_version_in_any_spelling() -> None:
    assert parse_release("0.23") == parse_release("0.23.0") == parse_release("v0.23.0+cu129") == (0, 23)
    assert parse_release("0.23.1rc1.dev531+ga65f93fb2") == (0, 23, 1)
    with pytest.raises(KvtoolError, match=r"'newest' is no version: write one as 0\.23"):
        parse_release("newest")


def test_rules_hold_from_their_release_on() -> None:
    assert rules_at("0.10") == VllmRules()
    assert [rules_at(version).sampler for version in ("0.10.2", "0.16", "0.17", "0.21", None)] == [
        *("flashinfer", "sort", "triton", "flashinfer", "flashinfer")
    ]
    assert [rules_at(version).group_ratio for version in ("0.11", "0.12", "0.18")] == [1.0, 1.25, 1.5]
    assert [rules_at(version).gpu_memory_utilization for version in ("0.19.1", "0.20")] == [0.9, 0.92]


def test_which_models_the_second_runner_runs() -> None:
    models = [CATALOGUE.get(name) for name in ("qwen3-8b", "llama-3.1-8b", "gemma-2-9b", "qwen3.5-27b", "mixtral-8x7b")]
    by_release = {
        v: [rules_at(v).second_runner.runs(m) for m in models] for v in ("0.21", "0.22", "0.23", "0.25", "0.29")
    }
    assert by_release["0.21"] == [False] * 5
    assert by_release["0.22"] == [True, False, False, False, False]
    assert by_release["0.23"] == [True, True, False, False, False]
    assert by_release["0.25"] == [True, True, True, False, False]
    assert by_release["0.29"] == [True] * 5


def test_how_far_a_release_was_checked_is_said() -> None:
    assert [HISTORY.standing(version) for version in (None, "0.33.1", "0.19", "0.22", "0.40", "0.6")] == [
        *("exact", "exact", "checked", "extrapolated", "extrapolated", "extrapolated")
    ]
    assert HISTORY.caveat(None) is None
    assert "the newest rules known are those of 0.33" in (HISTORY.caveat("0.40") or "")
    assert "those from 0.10 on" in (HISTORY.caveat("0.6") or "")
    assert [SGLANG.standing(version) for version in (None, "0.5.3", "0.5.10")] == ["exact", "checked", "extrapolated"]


def test_what_changed_between_two_releases() -> None:
    assert [change.rule for change in HISTORY.between("0.25", "0.26")] == [
        *("in_flight_batches", "hybrid_prefix_caching", "windows_beside_latent", "padded_states")
    ]
    assert HISTORY.between("0.26", "0.25") == HISTORY.between("0.25", "0.26")


def test_one_batch_in_flight_until_0_25() -> None:
    """A start of 0.23 that was refused: one request of Gemma-4-31B at 65,536 takes 12.04 GiB, where two batches in
    flight make it 18.29 (vllm-project/vllm#47728).
    """
    model = read_config(DATA / "hf_configs" / "nvidia--Gemma-4-31B-IT-NVFP4.json")
    needed = {}
    for version in ("0.23", "0.26"):
        options = EngineOptions(name="vllm", version=version, max_model_len=65536, max_num_batched_tokens=8192)
        found = plan(model, options, pool_bytes=round(7.25 * GIB))
        assert found.refusal
        needed[version] = round(found.bytes_needed[0] / GIB, 2)
    assert needed == {"0.23": 12.04, "0.26": 18.29}


def test_before_0_21_tokens_are_the_blocks_of_a_group() -> None:
    model = CATALOGUE.get("gemma-3-27b-it")
    old, new = (
        plan(model, EngineOptions(name="vllm", version=version, max_model_len=32768), pool_bytes=40 * GIB)
        for version in ("0.20", "0.21")
    )
    assert old.num_blocks == new.num_blocks
    assert old.gpu_kv_cache_tokens == (old.num_blocks or 0) // len(old.groups) * 16
    assert new.gpu_kv_cache_tokens == int((new.max_concurrency or 0) * 32768)


def test_sparse_rows_on_blackwell_had_scales_until_0_5_9() -> None:
    """DeepSeek-V3.2 on B200 in October 2025: 43.67 GB = 61 x 975,424 x (656 + 132) B (a public log of SGLang)."""
    model, b200 = CATALOGUE.get("deepseek-v3.2"), find_gpu("b200")
    scaled = [
        choose_backend(model, b200, cache_dtype="auto", page_size=None, rules=sglang_rules(version)).scaled_rows
        for version in ("0.5.3", None)
    ]
    assert scaled == [True, False]
