"""Where the reserved bytes go: the terms add up to the blocks, and each waste is where its cause is."""

from __future__ import annotations

import pytest

from kvtool.catalog.models_yaml import load_catalogue
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.vllm import VllmPlan, plan
from kvtool.sizing.engines.vllm import ledger as words
from kvtool.sizing.engines.vllm.ledger import ledger
from kvtool.sizing.engines.vllm.plan import request_blocks
from kvtool.sizing.layers import layer_specs
from kvtool.sizing.parallel import Parallel
from tests.sizing.engines.vllm.recorded import Case, cases

CATALOGUE = load_catalogue()


def reserved_bytes(found: VllmPlan, tokens: int) -> int:
    """Blocks of one request and the null block, on every rank of every stage."""
    blocks = request_blocks(found, tokens) + 1
    return found.inputs.parallel.tp * sum(blocks * size for size in found.bytes_per_block)


def terms(found: VllmPlan, tokens: int) -> dict[str, int]:
    return {term.term: term.bytes for term in ledger(found, tokens)}


@pytest.mark.parametrize("case", cases()[::3], ids=lambda case: case.name)
def test_the_terms_add_up_to_what_is_reserved(case: Case) -> None:
    found = plan(case.model, case.options, pool_bytes=case.pool_bytes)
    longest = found.max_model_len or 0
    for tokens in (1, 100, longest // 3 + 1, longest):
        listed = ledger(found, tokens)
        assert sum(term.bytes for term in listed) == reserved_bytes(found, tokens)
        assert all(term.bytes > 0 for term in listed)
        assert sum(term.ratio for term in listed) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("case", [case for case in cases() if case.tag == "base"][::9], ids=lambda case: case.name)
def test_the_first_term_is_what_the_sequence_is(case: Case) -> None:
    found = plan(case.model, case.options, pool_bytes=case.pool_bytes)
    tokens = found.max_model_len or 0
    specs = layer_specs(found.inputs.model, found.inputs.cache_format, state=found.inputs.state)
    whole = sum(spec.stored_bytes(tokens) for spec in specs)
    assert terms(found, tokens)[words.LOGICAL] == whole


def vllm(model: str, *, pool_gib: int = 40, **flags: object) -> VllmPlan:
    options = EngineOptions(name="vllm", max_model_len=32768, **flags)  # type: ignore[arg-type]
    return plan(CATALOGUE.get(model), options, pool_bytes=pool_gib << 30)


def test_mla_is_copied_to_every_rank_and_dcp_takes_copies_away() -> None:
    one = 32768 * 61 * 1152
    assert terms(vllm("deepseek-v3", parallel=Parallel(tp=8)), 32768)[words.REPLICAS] == 7 * one
    assert terms(vllm("deepseek-v3", parallel=Parallel(tp=8, dcp=4)), 32768)[words.REPLICAS] == one
    assert words.REPLICAS not in terms(vllm("deepseek-v3"), 32768)


def test_windows_reserve_what_is_in_flight() -> None:
    """gpt-oss: 18 sliding layers of 2 KiB a token; 127 + 2 x 8192 tokens are reserved for a window of 128."""
    assert terms(vllm("gpt-oss-120b"), 32768)[words.IN_FLIGHT] == (127 + 16384 - 128) * 18 * 2048
    sync = vllm("gpt-oss-120b", async_scheduling=False, max_num_batched_tokens=2048)
    assert terms(sync, 32768)[words.IN_FLIGHT] == (127 + 2048 - 128) * 18 * 2048


def test_without_the_hybrid_manager_windows_are_kept_whole() -> None:
    found = terms(vllm("gpt-oss-120b", hybrid_kv_cache_manager=False), 32768)
    assert found[words.PROMOTED] == (32768 - 128) * 18 * 2048
    assert words.IN_FLIGHT not in found


def test_prefix_caching_keeps_more_states() -> None:
    """Qwen3-Next on Hopper: three states a layer instead of one."""
    state = 36 * 1_097_728
    assert terms(vllm("qwen3-next-80b-a3b-instruct"), 32768)[words.STATE_COPIES] == 2 * state
    assert words.STATE_COPIES not in terms(vllm("qwen3-next-80b-a3b-instruct", enable_prefix_caching=False), 32768)


def test_small_groups_are_padded() -> None:
    """Gemma-3-27B: 52 sliding and 10 full layers in 7 groups of up to 10, so 8 of 70 places are empty."""
    found = vllm("gemma-3-27b")
    sliding = found.groups[0].blocks(32768, found.inputs)
    assert terms(found, 32768)[words.GROUP_PADDING] == 8 * sliding * 131072


def test_remedies_name_what_would_help_here() -> None:
    by_term = {term.term: term.remedy for term in ledger(vllm("gpt-oss-120b"), 32768)}
    assert by_term[words.IN_FLIGHT] == "--max-num-batched-tokens below 8192, --no-async-scheduling"
    assert by_term[words.LOGICAL] is None
    sync = {term.term: term.remedy for term in ledger(vllm("gpt-oss-120b", async_scheduling=False), 32768)}
    assert sync[words.IN_FLIGHT] == "--max-num-batched-tokens below 8192"
