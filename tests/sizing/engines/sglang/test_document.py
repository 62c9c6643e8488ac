from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kvtool.catalog.gpus import find_gpu
from kvtool.catalog.resolve import resolve_model
from kvtool.results import SizeEngine
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.sglang import plan, size_engine
from kvtool.sizing.parallel import Parallel
from kvtool.system.errors import KvtoolError
from kvtool.units import GIB
from tests.sizing.engines.sglang.example import gemma_4_e4b

SGLANG = EngineOptions(name="sglang", gpu=find_gpu("h100"))
POOL = 40 * GIB
SHARES = ("tokens of full attention", "index keys", "tokens of windows", "state slots", "left over")


def engine_of(name: str, **changes: Any) -> SizeEngine:
    return size_engine(plan(resolve_model(name), replace(SGLANG, **changes), pool_bytes=POOL))


def term(engine: SizeEngine, start: str) -> dict[str, Any]:
    assert engine.ledger is not None
    return next(entry for entry in engine.ledger if entry["term"].startswith(start))


@pytest.mark.parametrize(
    "name", ["llama-3.1-8b", "deepseek-v3.2", "gpt-oss-120b", "qwen3-next-80b-a3b-instruct", "gemma-4-e2b"]
)
def test_the_shares_of_a_ledger_are_all_of_the_pool(name: str) -> None:
    engine = engine_of(name)
    assert engine.ledger is not None
    shares = [entry for entry in engine.ledger if entry["term"] in SHARES]
    assert sum(entry["bytes"] for entry in shares) == POOL
    assert sum(entry["ratio"] for entry in shares) == pytest.approx(1, abs=1e-5)


def test_llama_by_hand() -> None:
    """131072 B a token: 40 GiB hold 327680 tokens, two and a half sequences of 128k."""
    engine = engine_of("llama-3.1-8b")
    assert (engine.name, engine.version, engine.block_size, engine.num_blocks) == ("sglang", "0.5.23", 1, 327680)
    assert (engine.gpu_kv_cache_tokens, engine.max_concurrency, engine.blocks_per_request) == (327680, 2.5, 131072)
    assert engine.exact_given_pool is True
    assert engine.log_line == (
        "KV Cache is allocated. dtype: torch.bfloat16, #tokens: 327680, K size: 20.00 GB, V size: 20.00 GB\n"
        "max_total_num_tokens=327680, chunked_prefill_size=8192, max_prefill_tokens=16384, "
        "max_running_requests=2048, context_len=131072"
    )
    assert engine.groups == [
        {
            "pool": "full",
            "layers": 32,
            "bytes_per_token": 131072,
            "index_bytes_per_token": 0,
            "tokens": 327680,
            "bytes": 327681 * 131072,
            "sequences": 2.5,
        }
    ]


def test_the_request_table_of_a_long_context_is_told() -> None:
    """memory_pool.py, ReqToTokenPool: int32 [requests + 1, context + 4], beside the pools."""
    engine = engine_of("llama-3.1-8b")
    assert term(engine, "request table")["bytes"] == 2049 * (131072 + 4) * 4
    shorter = engine_of("llama-3.1-8b", max_model_len=8192, max_running_requests=64)
    assert term(shorter, "request table")["bytes"] == 65 * (8192 + 4) * 4


def test_mla_is_whole_on_every_rank() -> None:
    engine = engine_of("deepseek-v3", parallel=Parallel(tp=8))
    copies = term(engine, "the same tokens on 8 ranks")
    assert copies["ratio"] == pytest.approx(7 / 8, abs=1e-4)
    assert "--enable-dp-attention" in copies["remedy"]
    split = engine_of("deepseek-v3", parallel=Parallel(tp=8, dcp=8))
    assert split.gpu_kv_cache_tokens == 8 * (engine.gpu_kv_cache_tokens or 0)
    assert split.ledger is not None
    assert not any(entry["term"].startswith("the same tokens") for entry in split.ledger)


def test_a_default_window_pool_is_mostly_idle_at_full_length_and_the_remedy_works() -> None:
    """gpt-oss: a running request keeps at most 127 + 128 + 2 tokens of a window, against 131072 of full attention."""
    engine = engine_of("gpt-oss-120b")
    idle = term(engine, "window tokens that 131,072-token sequences leave idle")
    assert idle["ratio"] > 0.44
    assert "--swa-full-tokens-ratio 0.002" in idle["remedy"]
    better = engine_of("gpt-oss-120b", swa_full_tokens_ratio=0.002)
    assert (better.max_concurrency or 0) > 1.7 * (engine.max_concurrency or 0)


def test_too_small_a_window_pool_leaves_full_tokens_idle() -> None:
    engine = engine_of("gpt-oss-120b", swa_full_tokens_ratio=0.001, max_model_len=8192)
    assert term(engine, "full tokens that 8,192-token sequences leave idle")["bytes"] > 0
    windows = next(group for group in engine.groups or [] if group["pool"] == "swa")
    assert engine.max_concurrency == windows["sequences"]


def test_state_slots_bound_the_requests() -> None:
    """5 slots a request with a radix cache and overlapped steps, 1 without (kv_cache_configurator.py)."""
    cached = engine_of("qwen3-next-80b-a3b-instruct")
    plain = engine_of("qwen3-next-80b-a3b-instruct", enable_prefix_caching=False)
    for engine, slots_per_request in ((cached, 5), (plain, 1)):
        group = next(group for group in engine.groups or [] if group["pool"] == "state")
        assert group["slots_per_request"] == slots_per_request
        assert group["sequences"] == group["slots"] // slots_per_request
    slot_bytes = 36 * (32 * 128 * 128 * 4 + 8192 * 3 * 2)
    slots = int(POOL * 0.9 / 1.9) // slot_bytes - 1
    assert f"max_running_requests={slots // 5}, " in (cached.log_line or "")


def test_sliding_layers_without_a_pool_of_their_own_are_told() -> None:
    engine = engine_of("gemma-3-27b-it")
    whole = term(engine, "of a sequence of 131,072 tokens")
    assert whole["bytes"] == 52 * (131072 - 1024) * 16 * 128 * 2 * 2
    planned = plan(resolve_model("gemma-3-27b-it"), SGLANG, pool_bytes=POOL)
    assert any("no window pool for gemma3_text" in remark for remark in planned.remarks)


def test_sharing_layers_are_told() -> None:
    engine = size_engine(plan(gemma_4_e4b(), SGLANG, pool_bytes=POOL))
    assert term(engine, "about what the 18 KV-sharing layers take")["bytes"] > POOL * 0.4


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("jamba-v0.1", {}, "no model with recurrent state of architecture jamba"),
        ("gpt-oss-120b", {"swa_full_tokens_ratio": 1.5}, "--swa-full-tokens-ratio 1.5 must be"),
        ("gpt-oss-120b", {"parallel": Parallel(tp=8, dcp=1), "max_total_tokens": 100}, "cannot hold one request"),
        ("qwen3-next-80b-a3b-instruct", {"max_mamba_cache_size": 3}, "3 state slots are too few"),
        ("llama-3.1-8b", {"kv_cache_dtype": "int8"}, "no int8 KV cache"),
    ],
)
def test_refusals_say_what_would_be_right(name: str, changes: dict[str, Any], words: str) -> None:
    engine = engine_of(name, **changes)
    assert words in (engine.refusal or "")
    assert (engine.gpu_kv_cache_tokens, engine.exact_given_pool) == (None, False)


def test_weights_that_leave_nothing_are_refused() -> None:
    engine = size_engine(plan(resolve_model("llama-3.1-8b"), SGLANG, pool_bytes=-5))
    assert "nothing is left for the KV cache" in (engine.refusal or "")


def test_what_is_not_known_is_not_called_exact() -> None:
    unknown = replace(resolve_model("gpt-oss-120b"), architecture=None)
    assert size_engine(plan(unknown, SGLANG, pool_bytes=POOL)).exact_given_pool is False
    longer = engine_of("llama-3.1-8b", max_model_len=262144)
    assert longer.exact_given_pool is False


def test_a_context_is_needed() -> None:
    model = replace(resolve_model("llama-3.1-8b"), max_position_embeddings=None)
    with pytest.raises(KvtoolError, match="give --max-model-len"):
        plan(model, SGLANG, pool_bytes=POOL)
