"""`kvtool size --engine sglang`: flags in, the engine's part of the document and the terminal out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.cli import in_process

Run = Callable[..., in_process.Done]

SGLANG = ("--engine", "sglang", "--context", "8k")
POOL = ("--kv-cache-memory-bytes", "40GiB")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return lambda *arguments: in_process.run(capsys, monkeypatch, *arguments)


def engine_of(run: Run, *arguments: str) -> dict[str, Any]:
    result = run("size", *arguments, *SGLANG, "--json")
    assert result.code == 0, result.err
    (row,) = json.loads(result.out)["rows"]
    assert row["inputs"]["engine"] == "sglang"
    return row["engine"]


def test_the_document_has_the_plan(run: Run) -> None:
    """40 GiB over 128 KiB a token."""
    engine = engine_of(run, "llama-3.1-8b", "--gpu", "h100", *POOL)
    assert (engine["name"], engine["version"], engine["exact_given_pool"]) == ("sglang", "0.5.23", True)
    assert (engine["gpu_kv_cache_tokens"], engine["num_blocks"], engine["max_concurrency"]) == (327680, 327680, 2.5)
    assert engine["pool_bytes"] == 40 << 30
    assert (engine["fixed_bytes_per_request"], engine["slope_bytes_per_token"]) == (0, 131072)


def test_without_a_size_the_card_is_estimated_by_sglangs_own_fraction(run: Run) -> None:
    """80 GB less the 614 MiB of a start, 0.818 of that (13904 MiB of 76294 are kept free), less weights and tables."""
    engine = engine_of(run, "llama-3.1-8b", "--gpu", "h100", "--gpu-memory", "80GB")
    weights = 8_030_261_248 * 2 + 131072 * 128 * 2
    assert engine["pool_bytes"] == pytest.approx((80e9 - 614 * 2**20) * 0.818 - weights, rel=1e-6)
    fraction = engine_of(run, "llama-3.1-8b", "--gpu", "h100", "--gpu-memory", "80GB", "--mem-fraction-static", "0.5")
    assert fraction["pool_bytes"] == pytest.approx((80e9 - 614 * 2**20) * 0.5 - weights, rel=1e-6)


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (("--block-size", "64"), "block_size", 64),
        (("--max-total-tokens", "5000"), "gpu_kv_cache_tokens", 5000),
        (("--max-running-requests", "7"), "max_num_seqs", 7),
        (("--max-model-len", "16k"), "max_concurrency", 20.0),
        (("--chunked-prefill-size", "4096"), "max_num_batched_tokens", 4096),
        (("--kv-cache-dtype", "fp8"), "gpu_kv_cache_tokens", 655360),
    ],
)
def test_flags_reach_the_plan(run: Run, flags: tuple[str, ...], field: str, value: object) -> None:
    assert engine_of(run, "llama-3.1-8b", "--gpu", "h100", *POOL, *flags)[field] == value


def test_pools_can_be_moved(run: Run) -> None:
    def tokens(pool: str, name: str, *flags: str) -> int:
        engine = engine_of(run, name, *POOL, *flags)
        group = next(group for group in engine["groups"] if group["pool"] == pool)
        return group.get("tokens", group.get("slots"))

    swa = "gpt-oss-120b"
    assert tokens("full", swa, "--swa-full-tokens-ratio", "0.1") > 1.6 * tokens("full", swa)
    hybrid = "qwen3-next-80b-a3b-instruct"
    assert tokens("state", hybrid, "--max-mamba-cache-size", "40") == 40
    assert tokens("state", hybrid, "--mamba-full-memory-ratio", "0.2") < tokens("state", hybrid) / 2
    halved = tokens("state", hybrid, "--max-mamba-cache-size", "40", "--tp", "2", "--dp", "2", "--enable-dp-attention")
    assert halved == 20


def test_the_terminal_shows_log_pools_and_where_the_bytes_go(run: Run) -> None:
    result = run("size", "gpt-oss-120b", "--gpu", "h100", *POOL, *SGLANG, "--weight-dtype", "int4", "--explain")
    assert "SGLang 0.5.23, bf16 cache: 647,269 blocks of 36,864 B in 40 GiB" in result.out
    assert "Use sliding window memory pool. full_layer_tokens=647269, swa_layer_tokens=517815" in result.out
    assert "Pools of SGLang" in result.out
    assert "tokens of windows" in result.out
    assert "SGLang has for caches on a GPU, under sequences of 8k tokens (bf16 cache)" in result.out


def test_another_version_is_warned_of_and_an_unknown_engine_refused(run: Run) -> None:
    result = run("size", "llama-3.1-8b", *POOL, "--engine", "sglang==0.6", "--context", "8k", "--json")
    assert "SGLang 0.6: extrapolated: the newest rules known are those of 0.5.23" in result.out
    unknown = run("size", "llama-3.1-8b", *POOL, "--engine", "sglanf")
    assert unknown.code == 2
    assert "sglang" in unknown.err


def test_a_start_that_sglang_refuses_is_a_no(run: Run) -> None:
    result = run("size", "gpt-oss-120b", "--max-total-tokens", "100", *POOL, *SGLANG)
    assert result.code == 1
    assert result.out.lower().count("would not start: the swa pool (80 tokens) cannot hold one request") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--swa-full-tokens-ratio", "0.1"), "--swa-full-tokens-ratio needs --engine sglang"),
        (("--engine", "vllm", "--mem-fraction-static", "0.8"), "--mem-fraction-static needs --engine sglang"),
        (("--engine", "sglang"), "--engine sglang needs --kv-cache-memory-bytes, as 40GiB, or --gpu"),
        (("--kv-cache-memory-bytes", "1GiB"), "--kv-cache-memory-bytes needs --engine vllm or sglang"),
    ],
)
def test_flags_without_their_engine(run: Run, arguments: tuple[str, ...], words: str) -> None:
    result = run("size", "llama-3.1-8b", *arguments)
    assert result.code == 2
    assert words in result.err
