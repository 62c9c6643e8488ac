"""Sparse caches in the engine: tokens beside those of a whole cache, pages given back, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvtool.bench.accuracy.methods import method
from kvtool.cache.manager import CacheManager
from kvtool.cache.window import SinkWindow
from kvtool.engine.scheduler import Scheduler, SchedulerLimits
from kvtool.engine.sequence import SamplingParams, Sequence
from kvtool.sizing.formats import Sparse, parse_cache_format
from kvtool.sizing.specs import StreamingSpec
from kvtool.system.errors import KvtoolError
from tests.engine.conftest import SaveTiny
from tests.engine.running import engine_of, generate, load, prompt

BLOCK = 4


@pytest.mark.parametrize("way", ["streaming", "quest"])
def test_a_cache_that_reads_all_of_it_says_what_a_whole_one_says(tiny: SaveTiny, way: str) -> None:
    folder = tiny("llama-3-gqa").folder
    prompts = [prompt(37), prompt(20)]
    whole = generate(engine_of(load(folder)), prompts, max_tokens=6)
    loaded = load(folder, kv_cache_dtype=f"fp32+{way}:64")
    for ours, theirs in zip(generate(engine_of(loaded), prompts, max_tokens=6), whole, strict=True):
        torch.testing.assert_close(torch.stack(ours.logits), torch.stack(theirs.logits), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("way", "prompt_len"), [("streaming", 21), ("streaming", 9), ("quest", 4)])
def test_decoding_says_what_the_text_at_once_says(tiny: SaveTiny, way: str, prompt_len: int) -> None:
    """So that what `--parts accuracy` measures is what the generator does; Quest's prompts are read whole."""
    loaded = load(tiny("llama-3-gqa").folder, kv_cache_dtype=f"fp32+{way}:16", block_size=BLOCK)
    (sequence,) = generate(engine_of(loaded), [prompt(prompt_len)], max_tokens=40)
    at_once = method(load(tiny("llama-3-gqa").folder, block_size=BLOCK), f"fp32+{way}:16")
    tokens = sequence.token_ids[:-1]
    expected = at_once.logits(tokens, at_once.layers(len(tokens)))[prompt_len - 1 :]
    torch.testing.assert_close(torch.stack(sequence.logits), expected, atol=1e-4, rtol=1e-4)


def test_streams_go_on_in_a_pool_that_would_not_hold_them(tiny: SaveTiny) -> None:
    """Sinks of 4, as many turned, and 3 pages of window: 5 pages each, where the tokens would fill 26 and more."""
    loaded = load(tiny("llama-3-gqa").folder, kv_cache_dtype="fp32+streaming:16", block_size=BLOCK)
    engine = engine_of(loaded, num_pages=28)
    lengths = (3, 5, 7, 9, 11)
    sequences = [engine.add(prompt(length), SamplingParams(max_tokens=100)) for length in lengths]
    for _ in engine.run_until_idle():
        engine.cache.check()
    assert engine.cache.counters().peak_pages == 25
    predicted = sum(spec.peak_bytes(length, length + 99, 4) for spec in loaded.specs for length in lengths)
    assert predicted == 25 * engine.pool.page_bytes
    assert [len(sequence.output_ids) for sequence in sequences] == [100] * 5
    with pytest.raises(KvtoolError, match="needs 4 pages of 4, but the pool has 3"):
        engine_of(loaded, num_pages=3).add(prompt(11), SamplingParams(max_tokens=6))


@pytest.mark.parametrize(
    ("prompt_len", "output_len"), [(100, 3), (9, 3), (3, 60), (17, 60), (24, 8), (25, 1), (16, 1), (61, 40)]
)
def test_what_a_prompt_holds_while_it_is_computed_is_predicted(prompt_len: int, output_len: int) -> None:
    """Steps of 8 tokens, pages of 4, and 12 tokens of window behind 4 of sinks."""
    cache = CacheManager(64, 4, prefix_caching=False)
    window = SinkWindow(window_pages=3, step_tokens=8)
    scheduler = Scheduler(cache, SchedulerLimits(), window=window)
    sequence = Sequence(
        id=0,
        token_ids=list(range(prompt_len)),
        prompt_tokens=prompt_len,
        params=SamplingParams(max_tokens=output_len),
        arrival_s=0.0,
    )
    scheduler.add(sequence)
    while not scheduler.is_idle:
        for item in scheduler.schedule():
            completes = item.completes
            scheduler.computed(item)
            cache.check()
            if completes:
                sequence.token_ids.append(0)
        if sequence.num_output == output_len:
            scheduler.finish(sequence)
    streaming = Sparse(way="streaming", tokens=16, page_tokens=4, step_tokens=8)
    fmt = replace(parse_cache_format("bf16+streaming:16"), sparse=streaming)
    spec = StreamingSpec(kv_heads=1, k_head_dim=8, v_head_dim=8, cache_format=fmt, window=20)
    tokens = prompt_len + output_len - 1
    assert spec.peak_bytes(prompt_len, tokens, 4) == cache.counters().peak_pages * spec.page_bytes(4)
    assert spec.allocated_bytes(tokens, 4) <= 5 * spec.page_bytes(4)
    assert spec.read_tokens(tokens) == tokens if tokens <= 16 else 13 <= spec.read_tokens(tokens) <= 16


@pytest.mark.parametrize(
    ("name", "kv_cache_dtype", "message"),
    [
        ("mistral-window", "fp32+streaming:64", "one of full attention: this model has layers of another kind"),
        ("deepseek-v3", "fp32+quest:64", "no rows for the MLA"),
        ("llama-3-gqa", "fp8+streaming:64", "a streaming cache is one of fp32, bf16, fp16, not of fp8"),
        ("llama-3-gqa", "fp32+quest:100", "reads whole pages of 16, two at least: as 96"),
        ("llama-3-gqa", "fp32+streaming:16", "reads whole pages of 16, two at least: as 32"),
    ],
)
def test_what_cannot_be_sparse_is_refused_by_name(tiny: SaveTiny, name: str, kv_cache_dtype: str, message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        load(tiny(name).folder, kv_cache_dtype=kv_cache_dtype)
