"""One scenario of the workload part: its arms in turns, and the case of each policy."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace as changed

from kvtool.bench.accounting import step_bytes
from kvtool.bench.cases.base import Iterations, Measured, Setup
from kvtool.bench.cases.below import divided, own_tiers
from kvtool.bench.cases.goodput import goodput_ratio
from kvtool.bench.cases.serve import Served, serve
from kvtool.bench.checks import compare_runs
from kvtool.bench.harness import cold_start_of, kv_bytes, run_requests
from kvtool.bench.metrics import metrics_of
from kvtool.bench.savings import of_arm, savings
from kvtool.engine.engine import Engine
from kvtool.engine.offload.page_file import file_bytes
from kvtool.engine.sequence import Sequence
from kvtool.machine.memory import peak_memory
from kvtool.results import Case, Check, Memory, Roofline, Sample, TierUse, Workload, WorkloadCase
from kvtool.units import ceil_div
from kvtool.workloads import Request
from kvtool.workloads.scenarios.base import Plan
from kvtool.workloads.scenarios.scenarios import is_trace, title

if TYPE_CHECKING:
    from kvtool.bench.cases.workload import Workload as Options

MOST_POINTS = 400  # of a curve over time


@dataclass(frozen=True, slots=True)
class Arm:
    """An engine, the arm that its samples are of, and what each of its iterations brought."""

    name: str
    engine: Engine
    is_cached: bool
    policy: tuple[str, str]
    served: dict[int, Served] = field(default_factory=dict)


class Race:
    """One scenario at one hit rate: its arms in turns, the other way round in every second iteration.

    Each policy is an arm, the first one twice (`repeat`), and no prefix cache is another.
    """

    def __init__(self, setup: Setup, options: Options, scenario: str, hit_rate: float | None) -> None:
        self.setup, self.options = setup, options
        self.scenario, self.hit_rate = scenario, hit_rate
        self.below = divided(setup.tiers, len(options.policies))
        # Every iteration has prompts of its own, and so has the warm-up.
        self.plan = cache(lambda draw: options.plan(scenario, hit_rate, seed=setup.seed + draw))
        self.warm_up = setup.most_iters
        plans = [self.plan(draw) for draw in range(self.warm_up + 1)]
        self.num_pages = options.pool_pages(plans)
        self.peak_bytes = peak_memory(setup.loaded.device, apart_bytes=setup.windows.buffer_bytes)
        self.arms = self._arms(max(sum(turn.answers for turn in plan.turns) for plan in plans))

    def _arms(self, num_requests: int) -> list[Arm]:
        policies = self.options.policies
        arms = []
        for index, own in enumerate(policies):
            tiers = own_tiers(self.below, f"{title(self.scenario)}-{index}")
            arms.append(Arm(f"cached {index}", self._engine(own, num_requests, tiers=tiers), True, own))
        uncached = self._engine(policies[0], num_requests, prefix_caching=False)
        return [*arms, Arm("uncached", uncached, False, policies[0]), replace(arms[0], name="repeat", served={})]

    def _engine(self, policy: tuple[str, str], num_requests: int, **given: Any) -> Engine:
        """`given` are further settings."""
        loaded = self.setup.loaded
        eviction, preemption = policy
        config = replace(loaded.config, eviction=eviction, preemption=preemption, **given)
        engine = Engine(loaded, num_pages=self.num_pages, config=config)
        most = min(num_requests, self.options.concurrency or num_requests, engine.scheduler.limits.max_num_seqs)
        engine.prepare(range(1, most + 1))
        return engine

    def measure(self) -> Measured:
        try:
            check = self._check()
            iterations = self.setup.iterate(self._take_turns)
            cases = [self._case(arm, iterations, check) for arm in self.arms if arm.name.startswith("cached")]
        finally:
            for arm in self.arms:
                arm.engine.close()
        return Measured(list(cases), iterations.limits)

    def _take_turns(self, iteration: int) -> list[Sample]:
        order = self.arms if iteration % 2 == 0 else self.arms[::-1]
        for arm in order:
            arm.served[iteration] = self._serve(arm, self.plan(iteration))
        return [sample for arm in self.arms for sample in arm.served[iteration].samples(arm.name, iteration)]

    def _serve(self, arm: Arm, plan: Plan) -> Served:
        """From an empty cache and empty tiers, but for what the plan primes."""
        engine = arm.engine
        engine.reset()
        if arm.is_cached:
            for prompt in plan.priming:
                run_requests(engine, [Request(prompt, output_len=1)])
        engine.reset_counters()
        served = serve(engine, plan, concurrency=self.options.concurrency, forks=arm.is_cached)
        if all(turn.answers == 1 for turn in plan.turns) and not served.preemptions:
            counted = served.counters.hit_tokens + sum(tier.hit_tokens for tier in served.tiers)
            assert served.hit_tokens == counted, "requests found what neither the allocator nor a tier counted"
        return served

    def _check(self) -> Check:
        """Tokens and logits with and without the prefix cache, untimed, so that it also warms both up. Where answers
        parted in a tie, the turns that go on from them are different prompts, and are left out."""
        first, uncached = self.arms[0], next(arm for arm in self.arms if arm.name == "uncached")
        runs: list[list[Sequence]] = []
        for arm in (first, uncached):
            arm.engine.keep_logits = True
            runs.append(self._serve(arm, self.plan(self.warm_up)).sequences)
            arm.engine.keep_logits = False
        same = [pair for pair in zip(*runs, strict=True) if _prompt(pair[0]) == _prompt(pair[1])]
        a, b = [pair[0] for pair in same], [pair[1] for pair in same]
        return compare_runs(a, b, dtype=self.setup.loaded.dtype, names="cached against uncached")

    def _case(self, arm: Arm, iterations: Iterations, check: Check) -> WorkloadCase:
        loaded = self.setup.loaded
        samples = _own_samples(iterations.samples, arm, self.arms[0])
        cached = of_arm(samples, "cached")
        iteration = self._shown(arm, cached)
        plan, served = self.plan(iteration), arm.served[iteration]
        typical = sorted(sample.prompt_tokens for sample in cached)[len(cached) // 2]
        return WorkloadCase(
            name=self._name(arm),
            inputs=self._inputs(arm, plan),
            samples=samples,
            metrics=metrics_of(cached, queues=True),
            bytes=step_bytes(loaded, [Request((0,) * typical, self.options.output_len)]),
            roofline=Roofline(),
            memory=self._memory(arm, plan, served),
            check=check,
            cold_start=cold_start_of(self.arms[0].engine),
            load=iterations.load,
            workload=self._figures(arm, plan, served, samples),
        )

    def _shown(self, arm: Arm, cached: Seq[Sample]) -> int:
        """The iteration that a case tells of: one that found other hits than were generated, else the first kept."""
        for iteration, served in arm.served.items():
            plan = self.plan(iteration)
            if (
                self._are_hits_exact(plan)
                and not served.counters.evicted_pages
                and served.hit_tokens != plan.cached_tokens
            ):
                return iteration
        return next(i for i, served in arm.served.items() if served.sequences[0].ttft_s == cached[0].ttft_s)

    def _name(self, arm: Arm) -> str:
        rate = () if self.hit_rate is None else (f"{self.hit_rate:g}",)
        eviction, preemption = arm.policy
        more = (preemption,) if len(self.options.preemptions) > 1 else ()
        return "/".join(("workload", title(self.scenario), *rate, eviction, *more))

    def _inputs(self, arm: Arm, plan: Plan) -> dict[str, str | int | float | bool | None]:
        options, below = self.options, self.below
        eviction, preemption = arm.policy
        return self.setup.inputs(
            scenario=title(self.scenario),
            eviction=eviction,
            preemption=preemption,
            admission=self.setup.loaded.config.admission,
            index=self.setup.loaded.config.index,
            partial_hits=self.setup.loaded.config.partial_hits,
            input_len=options.input_len(self.scenario, self.hit_rate),
            output_len=options.output_len,
            batch_size=None,
            prefix_len=options.prefix_len,
            hit_rate=self.hit_rate,
            num_prompts=sum(turn.answers for turn in plan.turns),
            pool_tokens=self.num_pages * options.block_size,
            concurrency=options.concurrency,
            request_rate=options.request_rate,
            burstiness=None if options.request_rate is None else options.burstiness,
            think_time=options.think_s,
            time_scale=options.time_scale if is_trace(self.scenario) else None,
            num_iters_warmup=1,
            **({"priority": ",".join(map(str, options.priorities))} if options.priorities else {}),
            **({} if below is None else {"tiers": str(below), "write_policy": str(below.write)}),
        )

    def _memory(self, arm: Arm, plan: Plan, served: Served) -> Memory:
        """Predicted: all requests at their longest, sharing nothing. Allocated: the most that were really held."""
        loaded, engine = self.setup.loaded, arm.engine
        requests = [
            Request((0,) * turn.prompt_tokens, turn.output_len) for turn in plan.turns for _ in range(turn.answers)
        ]
        predicted, _ = kv_bytes(loaded.specs, requests, loaded.config.block_size)
        page_bytes = engine.pool.page_bytes
        return Memory(
            kv_predicted_bytes=predicted,
            kv_allocated_bytes=served.counters.peak_pages * page_bytes,
            kv_pool_bytes=engine.pool.bytes,
            kv_waste_bytes=served.empty_slots * page_bytes // loaded.config.block_size,
            peak_bytes=self.peak_bytes(),
        )

    def _figures(self, arm: Arm, plan: Plan, served: Served, samples: Seq[Sample]) -> Workload:
        loaded, options = self.setup.loaded, self.options
        eviction, preemption = arm.policy
        return Workload(
            scenario=title(self.scenario),
            policy=eviction,
            admission=loaded.config.admission,
            preemption=preemption,
            scale=(plan.scale or self._scale()) + self._divided(),
            hit_rate_requested=plan.hit_rate if self.hit_rate is None else self.hit_rate,
            hit_rate_measured=served.hit_tokens / plan.prompt_tokens,
            hit_tokens_expected=plan.cached_tokens,
            hits_exact=self._are_hits_exact(plan),
            hit_tokens=served.hit_tokens,
            recomputed_tokens=served.recomputed_tokens,
            prompt_tokens=plan.prompt_tokens,
            evicted_pages=served.counters.evicted_pages,
            preemptions=served.preemptions,
            copied_pages=served.counters.copied_pages,
            tiers=[TierUse(**asdict(tier)) for tier in served.tiers],
            kept_below=self._keeps_all_below(arm, plan, served),
            occupancy=thinned(served.in_use),
            held=thinned(served.held),
            map=page_runs(served.owners),
            goodput_ratio=goodput_ratio(of_arm(samples, "cached"), options.goodput_ms),
            saved=savings(loaded.model, loaded.specs, samples, served.hit_tokens),
        )

    def _are_hits_exact(self, plan: Plan) -> bool:
        """Where nothing is evicted and all is kept. Answers that have no room beside the first look their prompt up,
        page by page, and a part of a page that is found is more than a plan counts on."""
        config = self.setup.loaded.config
        forks = any(turn.answers > 1 for turn in plan.turns)
        roomy = self.num_pages >= plan.pages(self.options.block_size)
        kept = config.admission == "always" and not config.partial_hits
        return kept and (plan.exact or self.options.concurrency == 1) and (roomy or not forks)

    def _keeps_all_below(self, arm: Arm, plan: Plan, served: Served) -> bool:
        """Whether whatever leaves the pool stays in one of the tiers."""
        below, offload = self.below, arm.engine.offload
        if below is None or offload is None or not offload.stack.holds_anything:
            return False
        room = max(below.dram_bytes or 0, below.disk_bytes or 0) // file_bytes(arm.engine.pool.page_bytes)
        return below.write.kind == "through" and not served.preemptions and room >= plan.pages(self.options.block_size)

    def _divided(self) -> str:
        """What of the tiers each policy has, where several share them."""
        count = len(self.options.policies)
        return "" if self.below is None or count == 1 else f"; {self.below} for each of {count} policies, an equal part"

    def _scale(self) -> str:
        options = self.options
        longest = options.input_len(self.scenario, self.hit_rate)
        if options.input_lens is not None:
            return f"prompts of up to {longest:,} tokens, as asked for"
        limits = "" if options.most_tokens is None else f", at most {options.most_tokens:,} with the answer"
        return f"prompts of up to {longest:,} tokens, which suit a {'GPU' if options.gpu else 'CPU'}{limits}"


def _prompt(sequence: Sequence) -> list[int]:
    return sequence.token_ids[: sequence.prompt_tokens]


def _own_samples(samples: Seq[Sample], arm: Arm, first: Arm) -> list[Sample]:
    """Those of a case: its own arm as `cached`, the one without a cache, and the repeat where it is of its policy."""
    kept = ("uncached", "repeat") if arm is first else ("uncached",)
    own = [changed(sample, arm="cached") for sample in of_arm(samples, arm.name)]
    return [*own, *(sample for name in kept for sample in of_arm(samples, name))]


def thinned(points: Seq[tuple[float, int]]) -> list[tuple[float, int]]:
    """At most MOST_POINTS of a curve, evenly, its last one included, in milliseconds' precision."""
    stride = ceil_div(len(points), MOST_POINTS) or 1
    kept = [*points[::stride], *points[-1:]] if (len(points) - 1) % stride else list(points[::stride])
    return [(round(seconds, 4), pages) for seconds, pages in kept]


def page_runs(owners: dict[int, int]) -> list[tuple[int, int, int]]:
    """Neighbouring pages of one owner together: the first of them, how many, and the owner."""
    runs: list[tuple[int, int, int]] = []
    for page, owner in sorted(owners.items()):
        first, count, last_owner = runs[-1] if runs else (page, 0, owner)
        if owner == last_owner and first + count == page:
            runs[-1:] = [(first, count + 1, owner)]
        else:
            runs.append((page, 1, owner))
    return runs


def scales(cases: Seq[Case]) -> list[str]:
    """How the lengths of workloads came about, a line for all that have the same."""
    found: dict[str, list[str]] = {}
    for case in cases:
        if isinstance(case, WorkloadCase):
            found.setdefault(case.workload.scale, []).append(case.workload.scenario)
    return [f"{', '.join(dict.fromkeys(names))}: {scale}" for scale, names in found.items()]
