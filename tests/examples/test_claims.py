"""The page of claims is what its script prints, and every verdict follows from numbers that are worked out here."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from kvtool.catalog.gpus import find_gpu
from kvtool.results import BenchDocument, read_document

FOLDER = Path(__file__).parents[2] / "examples" / "claims"
PAGE = (FOLDER / "README.md").read_text()
GIB = 2**30
# What is said (how it begins) -> the verdict, and numbers that kvtool's answer must hold: worked out by hand.
EXPECTED = {
    "Llama-2-7B in fp16": ("right", [f"{2 * 32 * 32 * 128 * 2:,} B", "1 GiB"]),
    "Llama-2-70B in bf16": ("close", [f"{2 * 80 * 8 * 128 * 2:,} B", "3.28 GB", "32.8 GB"]),
    "96 layers x 8 KV heads": ("right", [f"{2 * 96 * 8 * 128 * 2 * 10_000 / 1e9:.3f} GB"]),
    "Llama-3-8B at 4096": ("wrong", ["512 MiB", "50 GiB"]),
    "Llama-2-7B, 2048 tokens, batch 32": ("wrong", ["32 GiB", "512 GiB"]),
    "Sharing a 100 MB user cache": ("right", [f"{49 * 768 * 131072 / 1e9:.2f} GB"]),
    "With 32 query heads": ("right", ["524,288 B", "131,072 B (4x)", "16,384 B a token (32x)"]),
    "An A100's registers": ("right", ["108 x 256 KiB = 27 MiB", "38x"]),
    "Sequence parallelism": ("wrong", ["(2x)", "(1/8)"]),
    "A card of 80 GB": ("wrong", [f"{2 * 8_030_261_248 / 1e9:.1f} GB"]),
    "Registers are 100x": ("right", [f"{12 * 64 * 108 * 1.41 / 2039:.0f}x", f"{12 * 128 * 132 * 1.98 / 3350:.0f}x"]),
    "From Ampere to Blackwell": ("right", [f"{200 / 400 * 9000 / 312:.1f}x", f"{200 / 400 * 2250 / 312:.1f}x"]),
    "MLA keeps a fraction": ("right", [f"{61 * 576 * 2:,} B", f"{2 * 61 * 128 * 128 * 2:,} B", "57x"]),
    "A cache takes from 15 MB": ("wrong", [f"{131072 * 100 / 1e6:.1f} MB", f"{131072 * 100_000 / 1e9:.1f} GB"]),
    "A GPU keeps below 100k": ("wrong", [f"{4096 * 131072 / 64e6:.1f} and {4096 * 131072 / 7e6:.0f} ms"]),
    "A KV cache takes": ("wrong", ["2 GiB", "fp8 50%", f"int4 {1 - 4.5 / 16:.0%}", "8 KV heads 75%"]),
    "Q is not cached": ("right", [f"{32 * 32 * 128 * 2:,} B"]),
    "With pages of 16": ("right", ["token 17 takes it, token 33 the third"]),
    "Requests of 500, 300 and 200": ("wrong", ["1-32, 33-51 and 52-64"]),
    "A radix tree": ("wrong", ["17 for 16, 65 for 64 and 257 for 256"]),
    "LRU suits bursts": ("right", []),
    "FIFO drops": ("right", []),
    "DualPath makes": ("wrong", ["for Qwen2.5-32B", "for DeepSeek-V3"]),
    "With a cache every step": ("wrong", ["at 100 / 1,000 / 10,000 tokens"]),
    "Without a cache memory": ("wrong", ["grow 2x", "work 4.0x"]),
    "Caching only the first layer": ("wrong", ["31 layers"]),
    "Multi-turn chats": ("right", ["multi-turn ", "translation ", "few-shot ", "independent "]),
    "A shared system prompt": ("right", ["75% of the prompts"]),
    "INT8 halves": ("right", [f"{2 * 30 * 3 * (64 + 4):,} B a token for {2 * 30 * 3 * 64 * 2:,}"]),
    "Flash tiling": ("wrong", ["4,096 tokens x 8"]),
    "Offloaded caches": ("wrong", ["4,096 tokens of Llama-3.1-8B"]),
    "A cache saves 5x": ("wrong", ["6x for 8 tokens"]),
    "A cache makes a token": ("wrong", ["10x at 100 tokens", "1035x at 10,000"]),
}


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of the folder, imported as Python finds it when claims.py runs."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return __import__(name)


def rows() -> list[list[str]]:
    """The cells of the table of claims."""
    table = PAGE[PAGE.index("| what is said") : PAGE.index("\nScenarios")]
    return [line.strip("| ").split(" | ") for line in table.strip().splitlines()[2:]]


def test_the_page_is_what_the_script_prints() -> None:
    done = subprocess.run([sys.executable, str(FOLDER / "claims.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == PAGE


@pytest.mark.parametrize("name", ["pages.py", "speed.py", "runs.py"])
def test_a_script_that_the_page_names_runs_alone(name: str) -> None:
    assert f"`python examples/claims/{name}`" in PAGE
    done = subprocess.run([sys.executable, str(FOLDER / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 3


def test_every_claim_is_expected() -> None:
    assert [next(start for start in EXPECTED if row[0].startswith(start)) for row in rows()] == list(EXPECTED)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:30])
def test_a_claim_has_its_verdict_for_the_right_numbers(row: list[str]) -> None:
    said, verdict, found, why, shown_by = row
    expected, numbers = next(value for start, value in EXPECTED.items() if said.startswith(start))
    assert verdict == f"**{expected}**"
    assert [number for number in numbers if number not in found] == []
    assert why.endswith(".")
    assert re.match("`(kvtool|python) ", shown_by)


@pytest.mark.parametrize(
    ("said", "found_bytes", "verdict"),
    [
        ("0.5 MB", 524_288, "right"),
        ("0.5 MB", 549_999, "right"),
        ("0.5 MB", 590_000, "wrong"),
        ("320 KB", 327_680, "right"),
        ("320 KB", 320_000, "right"),
        ("3.2 GB", 3_276_800_000, "close"),
        ("2 GB", GIB // 2, "wrong"),
        ("1 GB", GIB, "right"),
    ],
)
def test_a_size_is_judged_by_the_digits_said(
    said: str, found_bytes: int, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = module("claim", monkeypatch)
    assert claim.judge(said, found_bytes) == verdict


def test_a_command_that_is_wrong_stops_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = module("claim", monkeypatch)
    with pytest.raises(SystemExit, match="unknown model 'lama-2'"):
        claim.sizes("kvtool size lama-2")
    with pytest.raises(SystemExit, match="--contxt"):
        claim.sizes("kvtool size llama-2-7b --contxt 8k")


def test_the_worst_verdict_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = module("claim", monkeypatch)
    assert claim.worst("right", "close") == "close"
    assert claim.worst("wrong", "right", "close") == "wrong"


@pytest.mark.parametrize(
    "name", ["decode.json", "no-cache.json", "scenarios.json", "accuracy.json", "bf16.json", "int8.json"]
)
def test_the_measurements_are_documents_with_their_hardware(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    document = read_document(FOLDER / name, BenchDocument)
    assert document.environment["cpu"]
    assert document.environment["memory_bytes"] > 0
    assert all(case.samples for case in document.cases if case.part != "accuracy")
    assert name in module("measure", monkeypatch).MEASUREMENTS


def test_the_measured_contexts_are_those_of_the_claim() -> None:
    cases = read_document(FOLDER / "decode.json", BenchDocument).cases
    assert sorted(int(str(case.inputs["input_len"])) for case in cases) == [100, 1000, 10000]
    assert {case.inputs["batch_size"] for case in cases} == {1}


def test_constant_steps_as_fast_as_said_would_be_right(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = module("speed", monkeypatch)
    said = [
        speed.Step(context=context, with_cache_ms=10.0, without_cache_ms=float(context), kv_read_bytes=0)
        for context in (100, 1000, 10000)
    ]
    assert speed.constant_step_verdict(said) == "right"
    growing = [replace(step, with_cache_ms=10.0 + step.context / 500) for step in said]
    assert speed.constant_step_verdict(growing) == "wrong"
    slower = [replace(step, without_cache_ms=step.without_cache_ms / 3) for step in said]
    assert speed.constant_step_verdict(slower) == "wrong"


def test_policies_are_judged_by_the_hits_of_the_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    policies = module("policies", monkeypatch)
    hits = {(name, size): 0.5 for name in ("lru", "lfu", "fifo-plain", "optimal") for size in (1000, 4000)}
    assert (policies.lru(hits).verdict, policies.fifo(hits).verdict) == ("right", "wrong")
    assert policies.lru({**hits, ("lfu", 1000): 0.6}).verdict == "wrong"
    assert policies.fifo({**hits, ("fifo-plain", 1000): 0.4, ("fifo-plain", 4000): 0.4}).verdict == "right"
    assert [policies.dual_path(*gains).verdict for gains in ((1.87, 1.87), (1.87, 1.0))] == ["right", "wrong"]


def test_a_share_of_the_limit_is_the_ideal_time_over_the_time_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = module("runs", monkeypatch)
    for case in runs.kernel_cases().values():
        assert case.roofline.reason is None
        took = {peer.name: peer.ratio * case.metrics.time_ms.p50 for peer in case.peers}
        limit = max(
            case.bytes.moved / case.roofline.read_gbps_measured / 1e6,
            case.bytes.flops / case.roofline.tflops_measured / 1e9,
        )
        assert runs.share(case, "naive") == pytest.approx(limit / took["naive"])
        assert runs.share(case, None) == pytest.approx(limit / case.metrics.time_ms.p50)


def test_memory_that_grows_as_the_square_would_be_right(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = module("speed", monkeypatch)
    lengths = (100, 1000, 4000)
    assert speed.memory_verdict({tokens: 10**9 + 64 * tokens**2 for tokens in lengths}) == "right"
    assert speed.memory_verdict({tokens: 10**9 + 64_000 * tokens for tokens in lengths}) == "wrong"


def test_a_match_reads_each_page_of_the_prefix_whatever_else_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = module("pages", monkeypatch)
    assert pages.tokens_read(32, other_prefixes=1) == pages.tokens_read(32, other_prefixes=500)
    assert pages.tokens_read(64) - pages.tokens_read(32) == 32 * pages.BLOCK_SIZE


def test_capacities_are_whole_pages_of_the_bytes_left() -> None:
    table = PAGE[PAGE.index("| memory |") :]
    numbers = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:3] for line in table.splitlines()[2:6]}
    assert numbers["256 GB of DRAM"] == [
        f"{256 * 10**9 // (131072 * 16) * 16:,}",
        f"{256 * 10**9 // (327680 * 16) * 16:,}",
    ]
    assert numbers["1 TB of SSD"] == [f"{10**12 // (131072 * 16) * 16:,}", f"{10**12 // (327680 * 16) * 16:,}"]
    small, large = (int(numbers[f"{size} GB card"][0].replace(",", "")) for size in (40, 80))
    # The same weights, activations and runtime: 92 % of the memory that there is more is left, but for a page's rest.
    more_bytes = find_gpu("a100-80gb").memory_bytes - find_gpu("a100-40gb").memory_bytes
    assert abs((large - small) * 131072 - 0.92 * more_bytes) <= 16 * 131072
    assert "do not fit" in numbers["80 GB card"][1]
