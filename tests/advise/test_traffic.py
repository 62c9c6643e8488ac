"""The mean request of scenarios and traces, and how much of it a cache of some size finds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kvtool.advise.traffic import Traffic, reused_tokens, trace_traffic, traffic_of
from kvtool.replay.capacity import Capacity
from kvtool.replay.options import ReplayOptions
from kvtool.replay.replay import replay
from kvtool.system.errors import KvtoolError
from kvtool.workloads.scenarios.base import Shape
from kvtool.workloads.scenarios.scenarios import SCENARIOS, plan_of
from kvtool.workloads.traces import open_trace

TRACE = Path(__file__).parents[1] / "data" / "traces" / "mooncake_conversation_200.jsonl"


def shape(num_prompts: int) -> Shape:
    return Shape(num_prompts=num_prompts, input_len=512, output_len=16, block_size=16, vocab_size=32000)


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in ("agent", "edit")])
def test_many_requests_follow_from_few(name: str) -> None:
    """All sums grow evenly with the number of prompts: 96 as they are made, and as 16 and 32 foretell them."""
    plan = plan_of(name, shape(96))
    found = traffic_of(name, shape(96))
    assert found.requests == 96
    assert found.input_tokens == round(plan.prompt_tokens / 96)
    assert found.output_tokens == 16
    assert found.hit_tokens == plan.cached_tokens // 96
    assert found.reused_tokens == reused_tokens(plan)


def test_long_prompts_follow_from_fewer() -> None:
    longer = dataclasses.replace(shape(12), input_len=65552)
    assert traffic_of("ranking", longer).reused_tokens == reused_tokens(plan_of("ranking", longer))


def test_what_comes_again_is_counted_once() -> None:
    assert traffic_of("translation", shape(8)).reused_tokens == 384  # 3/4 of the prompt, for all
    assert traffic_of("few-shot", shape(8)).reused_tokens == 2 * 448  # 7/8, of two tasks
    assert traffic_of("ranking", shape(8)).reused_tokens == 384
    assert traffic_of("parallel", shape(8)).reused_tokens == 511  # all but the token whose logits each answer needs
    assert traffic_of("independent", shape(8)).reused_tokens == 0


def test_a_trace_hits_what_its_replay_hits() -> None:
    found = trace_traffic(TRACE)
    capacities = (Capacity(blocks=100), Capacity(blocks=1000), Capacity())
    rows = replay(open_trace(TRACE), ReplayOptions(capacities=capacities)).rows
    for row in rows:
        tokens = found.reused_tokens if row.capacity_blocks is None else row.capacity_blocks * 512
        assert found.hits_in(tokens) == int(row.token_hit_ratio * found.input_tokens * 200 + 0.5) // 200 or (
            found.hits_in(tokens) == pytest.approx(row.token_hit_ratio * found.input_tokens, abs=1)
        )
    assert found.hits_in(found.reused_tokens - 512) < found.hit_tokens


def test_a_scenario_loses_sessions_where_they_do_not_fit() -> None:
    traffic = Traffic(
        source="chats", requests=10, input_tokens=100, output_tokens=1, hit_tokens=80, reused_tokens=1000, block_size=16
    )
    assert [traffic.hits_in(tokens) for tokens in (1000, 500, 0, -16)] == [80, 40, 0, 0]


def test_an_unknown_workload_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(KvtoolError, match="did you mean ranking"):
        traffic_of("rankin", shape(8))
