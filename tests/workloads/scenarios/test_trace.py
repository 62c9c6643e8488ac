"""A trace as a workload: its sharing, its times and its lengths at any scale."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtool.cache.retention import Retention
from kvtool.system.errors import KvtoolError
from kvtool.workloads.scenarios.base import Shape
from kvtool.workloads.scenarios.scenarios import plan_of
from tests.workloads.scenarios.serve import Serving

SLICE = Path(__file__).parents[2] / "data" / "traces" / "mooncake_conversation_200.jsonl"


def shape(**given: object) -> Shape:
    defaults = {"num_prompts": 60, "input_len": 4000, "output_len": 96, "block_size": 16, "vocab_size": 500}
    return Shape(**{**defaults, **given})


def test_one_request_after_the_other_hits_what_the_plan_says() -> None:
    from random import Random

    from kvtool.cache import CacheManager

    plan = plan_of(str(SLICE), shape())
    serving = Serving(CacheManager(plan.pages(16), 16), plan, Random(0), 500)
    for index, turn in enumerate(plan.turns):
        serving._begin(index, turn)
        serving._end(index)
    assert [serving.cached[i] for i in range(len(plan.turns))] == [turn.cached_tokens for turn in plan.turns]
    assert serving.cache.counters().hit_tokens == plan.cached_tokens > 0
    assert not plan.exact


def test_lengths_shrink_together_and_times_by_their_own_factor() -> None:
    plan, twice = plan_of(str(SLICE), shape()), plan_of(str(SLICE), shape(), time_scale=2.0)
    assert plan.longest_tokens <= 4096
    assert plan.turns[0].arrival_s == 0.0
    assert [turn.arrival_s for turn in twice.turns] == [turn.arrival_s / 2 for turn in plan.turns]
    assert plan.scale == "the first 60 requests of mooncake_conversation_200.jsonl with lengths x 0.03125, times / 1"
    short = plan_of(str(SLICE), shape(input_len=400, num_prompts=60))
    assert short.longest_tokens <= 496
    assert f"{60 - len(short.turns)} longer ones left out" in short.scale
    assert len(short.turns) < 60
    whole = plan_of(str(SLICE), shape(num_prompts=3, input_len=100_000))
    first = [line.split('"input_length": ')[1].split(",")[0] for line in SLICE.read_text().splitlines()[:3]]
    assert [turn.prompt_tokens for turn in whole.turns] == [int(length) for length in first]


def test_a_request_is_as_important_as_the_trace_says_on_the_clock_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    line = '{"timestamp": 0, "input_length": 32, "hash_ids": [1], "priority": 80, "priority_duration_ms": 3000}\n'
    path.write_text(line + line.replace(', "priority": 80, "priority_duration_ms": 3000', ""))
    plan = plan_of(str(path), shape(num_prompts=2), time_scale=2.0)
    assert [turn.retention for turn in plan.turns] == [Retention(80, 1.5), None]
    assert {turn.retention for turn in plan.of_priorities([Retention(5)]).turns} == {Retention(5)}


def test_what_a_trace_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KvtoolError, match="a trace shares what it shares"):
        plan_of(str(SLICE), shape(hit_rate=0.5))
    with pytest.raises(KvtoolError, match="time scale 0"):
        plan_of(str(SLICE), shape(), time_scale=0.0)
