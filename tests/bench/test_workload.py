"""Workloads run for real on a tiny model: hits, counts and bytes are those of the plan, in every arm and policy."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from msgspec.structs import replace as changed

from kvtool.bench.cases.base import Setup
from kvtool.bench.cases.below import divided
from kvtool.bench.cases.serve import serve
from kvtool.bench.cases.workload import Workload
from kvtool.bench.limits import hit_errors
from kvtool.bench.options import bench_options
from kvtool.cache.retention import Retention, parse_retention
from kvtool.cache.tiers.options import TierOptions, parse_tiers
from kvtool.engine.engine import Engine
from kvtool.machine.roofline import Ceiling
from kvtool.results import WorkloadCase
from kvtool.results.cases.workload import SHARED
from kvtool.system.errors import KvtoolError
from kvtool.workloads.scenarios.base import Shape
from kvtool.workloads.scenarios.scenarios import plan_of
from tests.bench.tiny_model import TINY, loaded

KV_BYTES_PER_TOKEN = 2 * 2 * (16 + 16) * 4  # layers, KV heads, K and V, fp32
SLICE = Path(__file__).parents[1] / "data" / "traces" / "mooncake_conversation_200.jsonl"


class NoWindows:
    """A device whose limits nobody asks for."""

    buffer_bytes = 0

    def measure(self) -> None:
        pass

    def take(self) -> list[Ceiling]:
        return []


@dataclass
class Clock:
    """Seconds that pass by a thousandth at every look, and by what is slept."""

    now_s: float = 0.0
    slept_s: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        self.now_s += 0.001
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds


@pytest.fixture(scope="module")
def model():
    return loaded()


def cases_of(
    model, scenario: str, *, num_iters: int = 1, tiers: TierOptions | None = None, **given: object
) -> list[WorkloadCase]:
    options = replace(Workload.default(gpu=False), **{"scenarios": (scenario,), "num_prompts": 6, **given})
    setup = Setup(loaded=model, windows=NoWindows(), num_iters=num_iters, num_iters_warmup=1, tiers=tiers)
    fitted = options.fitted(TINY, 16, tiers=tiers is not None)
    return [case for step in fitted.steps(setup) for case in step.measure().cases]


@pytest.mark.parametrize(
    "scenario", ["independent", "translation", "few-shot", "multi-turn", "agent", "ranking", "edit"]
)
def test_hits_are_those_generated_and_outputs_those_without_a_cache(model, scenario: str) -> None:
    (case,) = cases_of(model, scenario, input_lens=(200,))
    work = case.workload
    assert (work.scenario, work.policy, work.preemption, work.tiers) == (scenario, "lru", "youngest", [])
    assert (
        work.hit_tokens == work.hit_tokens_expected == sum(s.cached_tokens for s in case.samples if s.arm == "cached")
    )
    assert work.hit_rate_measured == work.hit_rate_requested == work.hit_tokens / work.prompt_tokens
    assert (work.recomputed_tokens, work.preemptions, work.evicted_pages) == (0, 0, 0)
    assert work.saved.kv_bytes_not_written == work.hit_tokens * KV_BYTES_PER_TOKEN
    assert (work.saved.flops > 0) == (scenario != "independent")
    assert case.check.outputs_equal is True
    assert all(sample.cached_tokens == 0 for sample in case.samples if sample.arm == "uncached")
    assert {sample.arm for sample in case.samples} == {"cached", "uncached", "repeat"}
    assert case.memory.kv_allocated_bytes <= case.memory.kv_pool_bytes
    assert max(pages for _, pages in work.held) <= max(pages for _, pages in work.occupancy)
    held = sum(count for _, count, owner in work.map if owner >= SHARED)
    assert held == max(pages for _, pages in work.held)
    assert {owner for _, _, owner in work.map if owner >= 0} <= set(range(6))
    assert hit_errors([case]) == []


def test_answers_share_their_prompt_and_copy_the_page_that_they_write(model) -> None:
    (case,) = cases_of(model, "parallel", input_lens=(100,), num_prompts=8)
    work = case.workload
    assert (work.hit_tokens, work.prompt_tokens) == (7 * 99, 8 * 100)
    assert work.copied_pages == 7
    assert work.saved.kv_bytes_not_written == 7 * 99 * KV_BYTES_PER_TOKEN
    assert max(pages for _, pages in work.held) == 100 // 16 + 8 == 14
    assert [sum(count for _, count, owner in work.map if owner == whose) for whose in (SHARED, *range(8))] == [
        6,
        *[1] * 8,
    ]
    assert case.check.outputs_equal is True
    assert hit_errors([case]) == []
    (again,) = cases_of(model, "parallel", input_lens=(97,), num_prompts=8)
    assert (again.workload.copied_pages, again.workload.hit_tokens) == (0, 7 * 96)


def test_a_hit_rate_is_found_by_the_allocator(model) -> None:
    (case,) = cases_of(model, "translation", hit_rates=(0.8,), num_prompts=5, input_lens=(300,))
    assert case.workload.hit_rate_requested == 0.8
    assert case.workload.hit_rate_measured == pytest.approx(0.8, abs=1 / case.workload.prompt_tokens)
    assert case.name == "workload/translation/0.8/lru"


def test_fifty_items_save_49_histories_to_the_byte(model) -> None:
    (case,) = cases_of(model, "ranking", num_prompts=50, prefix_len=208, input_lens=(212,), output_len=1)
    assert case.workload.saved.kv_bytes_not_written == 49 * 208 * KV_BYTES_PER_TOKEN


def test_a_run_with_other_hits_than_generated_fails(model) -> None:
    (case,) = cases_of(model, "translation", input_lens=(64,), num_prompts=2)
    fewer = changed(case, workload=changed(case.workload, hit_tokens=case.workload.hit_tokens - 16))
    assert hit_errors([case, fewer]) == [
        "workload/translation/lru: 96 hit tokens were generated but the allocator counted 80"
    ]
    evicted = changed(fewer, workload=changed(fewer.workload, evicted_pages=1))
    overlapping = changed(fewer, workload=changed(fewer.workload, hits_exact=False))
    assert hit_errors([evicted, overlapping]) == []
    more = changed(case, workload=changed(case.workload, hit_tokens=112, evicted_pages=1))
    assert len(hit_errors([more])) == 1
    assert hit_errors([changed(more, inputs=more.inputs | {"partial_hits": True})]) == []


def test_policies_run_the_same_requests_in_a_pool_that_is_too_small(model) -> None:
    given = {"num_prompts": 16, "input_lens": (150,), "pool_tokens": 480, "evictions": ("lru", "fifo"), "output_len": 9}
    lru, fifo = cases_of(model, "multi-turn", **given)
    assert (lru.workload.policy, fifo.workload.policy) == ("lru", "fifo")
    for case in (lru, fifo):
        work = case.workload
        assert work.evicted_pages > 0
        assert work.hit_tokens < work.hit_tokens_expected
        assert case.memory.kv_pool_bytes == 480 * KV_BYTES_PER_TOKEN
        assert max(pages for _, pages in work.occupancy) <= 30
        assert case.check.outputs_equal is True
    assert [{s.arm for s in case.samples} for case in (lru, fifo)] == [
        {"cached", "uncached", "repeat"},
        {"cached", "uncached"},
    ]
    prompts = [[s.prompt_tokens for s in case.samples if s.arm == "cached"] for case in (lru, fifo)]
    assert prompts[0] == prompts[1]
    assert hit_errors([lru, fifo]) == []


@pytest.mark.parametrize("tiers", ["dram=64MiB", "dram=64KiB,disk={}:64MiB"])
def test_what_leaves_the_pool_is_found_in_a_tier_and_counted_there(model, tmp_path: Path, tiers: str) -> None:
    """Arms, iterations and the repeat have tiers of their own: what one left would be hits that nobody asked for."""
    below = replace(parse_tiers(tiers.format(tmp_path)), always_load=True)
    given = {"num_prompts": 12, "input_lens": (150,), "output_len": 9, "evictions": ("lru", "fifo"), "num_iters": 2}
    for case in cases_of(model, "multi-turn", tiers=below, **given):
        work, cached = case.workload, [sample for sample in case.samples if sample.arm == "cached"]
        first = [sample for sample in cached if sample.iteration == 0]
        assert work.evicted_pages > 0
        assert work.kept_below is True
        assert work.hit_tokens == work.hit_tokens_expected == sum(sample.cached_tokens for sample in first)
        assert sum(tier.hit_tokens for tier in work.tiers) > 0
        assert [tier.tier for tier in work.tiers] == [item.partition("=")[0] for item in tiers.split(",")]
        assert sum(tier.bytes_out for tier in work.tiers) == sum(t.hit_tokens for t in work.tiers) * KV_BYTES_PER_TOKEN
        assert all(sample.load_s is not None and sample.load_s >= 0 for sample in cached)
        assert any(sample.load_s > 0 for sample in cached)
        assert case.check.outputs_equal is True
        assert case.inputs["tiers"] == str(divided(below, 2))
        assert work.scale.endswith("32 MiB for each of 2 policies, an equal part")
        assert case.inputs["write_policy"] == "through"
        assert hit_errors([case]) == []
        assert hit_errors([changed(case, workload=changed(work, hit_tokens=work.hit_tokens - 16))]) != []
        twins = [[s.cached_tokens for s in case.samples if s.arm == arm] for arm in ("cached", "repeat")]
        assert twins[0] == (twins[1] or twins[0])


def test_what_gave_way_is_computed_again_and_counted_apart(model) -> None:
    """Twelve pages hold one prompt of 80 tokens and its 60 answers; two of them do not grow beside each other."""
    plan = plan_of(
        "independent", Shape(num_prompts=3, input_len=80, output_len=60, block_size=16, vocab_size=512)
    )  # fmt: skip
    engine = Engine(model, num_pages=14)
    done = serve(engine, plan)
    assert done.preemptions > 0
    assert done.recomputed_tokens > 0
    assert done.hit_tokens == 0
    assert all(len(sequence.output_ids) == 60 for sequence in done.sequences)
    roomy = serve(Engine(model, num_pages=40), plan)
    assert (roomy.preemptions, roomy.recomputed_tokens) == (0, 0)
    assert [s.output_ids for s in roomy.sequences] == [s.output_ids for s in done.sequences]


def test_a_turn_comes_when_the_one_before_is_done_and_thought_about(model) -> None:
    clock = Clock()
    plan = plan_of(
        "multi-turn",
        Shape(num_prompts=4, input_len=120, output_len=3, block_size=16, vocab_size=512, think_s=5.0),
    )
    engine = Engine(model, num_pages=40, clock=clock)
    done = serve(engine, plan, sleep=clock.sleep)
    ends = [arrival_s + sequence.e2e_s for arrival_s, sequence in zip(done.arrivals_s, done.sequences, strict=True)]
    for index in range(1, 4):
        assert done.arrivals_s[index] == pytest.approx(ends[index - 1] + plan.turns[index].think_s, abs=0.05)
        before = done.sequences[index - 1].token_ids
        assert done.sequences[index].token_ids[: len(before)] == before
    assert len(clock.slept_s) >= 3
    assert all(0 <= queue_s < 0.05 for queue_s in done.queues_s)


def test_priorities_go_round_the_chats_and_reach_the_engine(model) -> None:
    """Who gives way is the less important of two chats, whichever was first, and its turns are as important as it."""
    shape = Shape(num_prompts=8, input_len=120, output_len=3, block_size=16, vocab_size=512)
    plan = plan_of("multi-turn", shape).of_priorities([parse_retention("80:60"), Retention(5)])
    wanted = [sequence.priority for sequence in serve(Engine(model, num_pages=40), plan).sequences]
    chats = [index for index, turn in enumerate(plan.turns) if turn.after is None]
    assert [wanted[index] for index in chats] == [80, 5][: len(chats)]
    assert all(wanted[i] == wanted[turn.after] for i, turn in enumerate(plan.turns) if turn.after is not None)
    long = Shape(num_prompts=2, input_len=80, output_len=60, block_size=16, vocab_size=512)
    config = replace(model.config, preemption="priority")
    for order in ((5, 80), (80, 5)):
        busy = plan_of("independent", long).of_priorities([Retention(priority) for priority in order])
        done = serve(Engine(model, num_pages=14, config=config), busy)
        gave_way = [sequence.num_preemptions > 0 for sequence in done.sequences]
        assert gave_way == [priority == 5 for priority in order]


def test_requests_that_the_limit_holds_back_wait_their_turn(model) -> None:
    plan = plan_of("edit", Shape(num_prompts=4, input_len=60, output_len=3, block_size=16, vocab_size=512))
    done = serve(Engine(model, num_pages=40, clock=Clock()), plan, concurrency=1)
    ends = [arrival + sequence.e2e_s for arrival, sequence in zip(done.arrivals_s, done.sequences, strict=True)]
    assert all(ends[i] <= done.arrivals_s[i + 1] for i in range(3))


def test_a_trace_runs_at_its_own_scale(model) -> None:
    (case,) = cases_of(model, str(SLICE), num_prompts=12, input_lens=(300,), time_scale=1e6, concurrency=1)
    assert case.name == "workload/mooncake_conversation_200.jsonl/lru"
    assert case.workload.hit_tokens == case.workload.hit_tokens_expected > 0
    assert "the first 12 requests" in case.workload.scale


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scenarios": ("agents",)}, "workload 'agents' is neither a file nor one of"),
        ({"evictions": ("lru", "mru")}, "eviction policy 'mru' is not one of"),
        ({"preemptions": ("oldest",)}, "preemption policy 'oldest' is not one of"),
        ({"burstiness": 0.5}, "--burstiness needs --request-rate"),
        ({"burstiness": 0.0, "request_rate": 1.0}, "burstiness 0.0 must be above 0"),
        ({"pool_tokens": 8}, "0 tokens, the model's positions or half of --pool-tokens 8, leave no prompt"),
        ({"pool_tokens": 640, "input_lens": (400,)}, "400 prompt and 6 output tokens are more than .* 320"),
        ({"input_lens": (2000,)}, "2000 prompt and 6 output tokens are more than the model's positions: 1024"),
    ],
)
def test_what_cannot_be_run_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        bench_options("cpu", parts=("workload",), **given).fitted(TINY, 16)


def test_lengths_fit_the_pool_and_the_model() -> None:
    small = replace(Workload.default(gpu=False), pool_tokens=300).fitted(TINY, 16)
    assert small.longest_tokens == 288 // 2
    assert Workload.default(gpu=True).fitted(TINY, 16).longest_tokens == TINY.max_position_embeddings
    assert Workload.default(gpu=False).fitted(TINY, 16).input_len("agent", None) == 1024 - 6
