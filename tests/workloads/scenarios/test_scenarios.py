"""What scenarios promise of their hits, held against a cache that runs them in any order."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtool.system.errors import KvtoolError
from kvtool.workloads.scenarios.agent import PUBLISHED, Published, trajectories
from kvtool.workloads.scenarios.base import Plan, Shape
from kvtool.workloads.scenarios.scenarios import SCENARIOS, plan_of
from tests.workloads.scenarios.serve import served

VOCAB = 512


def shape(**given: object) -> Shape:
    defaults = {"num_prompts": 8, "input_len": 512, "output_len": 6, "block_size": 16, "vocab_size": VOCAB}
    return Shape(**{**defaults, **given})


def hits(plan: Plan, block_size: int, seed: int = 0) -> int:
    """By the cache's own counters; answers that were forked from a prompt are spared it without a look-up."""
    run = served(plan, block_size=block_size, vocab_size=VOCAB, seed=seed)
    assert [run.cached[i] for i in range(len(plan.turns))] == [turn.cached_tokens for turn in plan.turns]
    counters = run.cache.counters()
    assert counters.queried_tokens + sum(t.prompt_tokens * (t.answers - 1) for t in plan.turns) == plan.prompt_tokens
    return counters.hit_tokens + sum((turn.prompt_tokens - 1) * (turn.answers - 1) for turn in plan.turns)


@settings(max_examples=60)
@given(
    name=st.sampled_from(sorted(SCENARIOS)),
    block_size=st.sampled_from([1, 4, 16, 32]),
    num_prompts=st.integers(1, 11),
    input_len=st.integers(200, 600),
    output_len=st.integers(2, 12),
    seed=st.integers(0, 99),
)
def test_every_scenario_hits_what_its_plan_says(
    name: str, block_size: int, num_prompts: int, input_len: int, output_len: int, seed: int
) -> None:
    made = shape(num_prompts=num_prompts, input_len=input_len, output_len=output_len, block_size=block_size, seed=seed)
    plan = plan_of(name, made)
    assert hits(plan, block_size, seed) == plan.cached_tokens
    assert plan.longest_tokens <= input_len + output_len
    assert 1 <= sum(turn.answers for turn in plan.turns) <= num_prompts
    assert plan == plan_of(name, made)


@settings(max_examples=60)
@given(
    name=st.sampled_from(sorted(SCENARIOS.keys() - {"independent", "parallel"})),
    rate=st.floats(0, 0.97),
    block_size=st.sampled_from([1, 16, 32]),
    num_prompts=st.integers(1, 12),
    input_len=st.integers(300, 1500),
    seed=st.integers(0, 99),
)
def test_a_hit_rate_is_met_to_the_page_or_refused(
    name: str, rate: float, block_size: int, num_prompts: int, input_len: int, seed: int
) -> None:
    made = shape(
        num_prompts=num_prompts, input_len=input_len, block_size=block_size, hit_rate=rate, output_len=3, seed=seed
    )
    try:
        plan = plan_of(name, made)
    except KvtoolError:
        return  # which of them are refused, and in which words, is tested below
    assert plan.longest_tokens <= input_len + 3
    found = hits(plan, block_size, seed)
    assert found == plan.cached_tokens
    assert abs(found - rate * plan.prompt_tokens) <= block_size / 2 + 1


@pytest.mark.parametrize("name", ["translation", "few-shot", "multi-turn", "agent", "ranking", "edit"])
def test_four_fifths_are_four_fifths(name: str) -> None:
    plan = plan_of(name, shape(hit_rate=0.8, num_prompts=10, input_len=1024))
    assert plan.hit_rate == pytest.approx(0.8, abs=16 / plan.prompt_tokens)


def test_seeds_share_no_page() -> None:
    """Prompts of the warm-up and of every iteration are of different seeds."""
    for name in SCENARIOS:
        pages = [
            {turn.own_ids[i : i + 16] for turn in plan.turns for i in range(0, len(turn.own_ids) - 15, 16)}
            for plan in (plan_of(name, shape(seed=seed)) for seed in range(3))
        ]
        assert not pages[0] & pages[1]
        assert not pages[1] & pages[2]


@pytest.mark.parametrize(("block_size", "input_len"), [(1, 1024), (8, 1024), (16, 1024), (64, 4096)])
def test_an_agent_finds_nearly_all_of_its_prompts(block_size: int, input_len: int) -> None:
    for seed in range(100 if input_len == 1024 else 20):
        plan = plan_of("agent", shape(num_prompts=6, input_len=input_len, block_size=block_size, seed=seed))
        assert plan.hit_rate >= 0.95, seed


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: str(row.longest))
def test_trajectories_have_the_published_means(row: Published) -> None:
    """DualPath (arXiv 2602.21548), the table of its workload: means over 500 trajectories at each longest length."""
    drawn = trajectories(1200, row.longest, Random(1))
    answers = [mean(own.output_lens) for own in drawn]
    appends = [
        mean(prompt - before for prompt, before in zip(own.prompt_lens, befores(own), strict=True)) for own in drawn
    ]
    assert mean(len(own.prompt_lens) for own in drawn) == pytest.approx(row.turns, rel=0.03)
    assert mean(answers) == pytest.approx(row.answer, rel=0.05)
    assert mean(appends) == pytest.approx(row.append, rel=0.05)
    assert mean(own.prompt_lens[-1] + own.output_lens[-1] for own in drawn) == pytest.approx(row.total, rel=0.02)
    assert mean(mean(own.prompt_lens) for own in drawn) == pytest.approx(row.context, rel=0.03)
    assert max(own.prompt_lens[-1] + own.output_lens[-1] for own in drawn) <= row.longest


def befores(own):
    return [own.history_len(turn) for turn in range(len(own.prompt_lens))]


def test_an_agent_goes_on_from_its_own_transcript() -> None:
    plan = plan_of("agent", shape(num_prompts=6, input_len=1024, think_s=2.0))
    run = served(plan, block_size=16, vocab_size=VOCAB)
    chains = [(turn.after, i) for i, turn in enumerate(plan.turns) if turn.after is not None]
    assert len(chains) == 4  # two agents of three turns
    for before, after in chains:
        assert run.prompts[after][: len(run.transcripts[before])] == run.transcripts[before]
        assert plan.turns[after].think_s > 0


def test_fifty_items_of_one_user_save_49_histories() -> None:
    """LONGER (RecSys '25): N (U + C) becomes U + N C."""
    plan = plan_of("ranking", shape(num_prompts=50, input_len=250, prefix_len=208))
    assert hits(plan, 16) == 49 * 208
    assert sum(turn.prompt_tokens - turn.cached_tokens for turn in plan.turns) == 208 + 50 * (250 - 208)
    with pytest.raises(KvtoolError, match=r"the first of 4 items finds nothing, which leaves 0\.7500"):
        plan_of("ranking", shape(num_prompts=4, hit_rate=0.8))


@pytest.mark.parametrize(("input_len", "copies"), [(100, 7), (96, 7), (97, 0)])
def test_answers_copy_the_page_that_they_part_on_and_no_other(input_len: int, copies: int) -> None:
    """Of 8 answers the first keeps its page. Behind 96 tokens, whole pages, the 97th is computed and nothing copied."""
    plan = plan_of("parallel", shape(input_len=input_len))
    run = served(plan, block_size=16, vocab_size=VOCAB)
    assert run.cache.counters().copied_pages == copies


def test_a_change_loses_all_that_stands_behind_it() -> None:
    plan = plan_of("edit", shape(num_prompts=3, input_len=512))
    (base,) = plan.priming
    for turn in plan.turns:
        changed = [i for i, (a, b) in enumerate(zip(base, turn.own_ids, strict=True)) if a != b]
        assert changed == [turn.cached_tokens]
    assert [turn.cached_tokens for turn in plan.turns] == [128, 256, 368]
    assert hits(plan, 16) == 752


def test_a_long_system_prompt_cuts_the_work_to_what_follows_it() -> None:
    plan = plan_of("translation", shape(num_prompts=20, input_len=2304, prefix_len=2048))
    assert plan.prompt_tokens - plan.cached_tokens == 20 * 256


def test_bursts_and_turns_arrive_when_they_must() -> None:
    plan = plan_of("multi-turn", shape(num_prompts=16)).arriving(4.0, burstiness=0.2, seed=3)
    firsts = [turn.arrival_s for turn in plan.turns if turn.after is None]
    assert len(firsts) == 4
    assert all(a < b for a, b in pairwise(firsts))
    assert {turn.arrival_s for turn in plan.turns if turn.after is not None} == {0.0}


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("independent", {"hit_rate": 0.5}, "independent cannot have a hit rate of 0.5"),
        ("parallel", {"hit_rate": 0.5}, "parallel cannot have a hit rate of 0.5"),
        ("translation", {"hit_rate": 0.5, "input_len": 20}, "less than a page of 16"),
        ("edit", {"hit_rate": 0.99}, "a change in the last page leaves 0.9688"),
        ("multi-turn", {"input_len": 20}, "do not fit into prompts of 20 tokens"),
        ("agents", {}, "workload 'agents' is neither a file nor one of .*agent"),
        ("ranking", {"hit_rate": 1.0}, "hit rate 1.0 must be from 0 to below 1"),
        ("agent", {"think_s": -1.0}, "think time -1.0"),
        ("parallel", {"output_len": 1}, "answers of one token never part"),
        ("agent", {"num_prompts": 0}, "num prompts 0 must be at least 1"),
    ],
)
def test_what_no_prompts_can_have_is_refused(name: str, given: dict[str, object], message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        plan_of(name, shape(**given))
