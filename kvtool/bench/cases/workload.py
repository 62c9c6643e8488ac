"""The workload part: named traffic with the prefix cache, without it, and with it once more, in turns."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import ClassVar

from kvtool.bench.cases.base import Measured, Setup, Stepped, require_arrivals, require_positive
from kvtool.bench.cases.scenario import Race
from kvtool.bench.session import Step
from kvtool.cache.eviction.eviction import eviction_policy
from kvtool.cache.retention import Retention
from kvtool.catalog.model import Model
from kvtool.engine.preemption import preemption_policy
from kvtool.system.errors import KvtoolError
from kvtool.units import ceil_div
from kvtool.workloads.scenarios.base import Plan, Shape
from kvtool.workloads.scenarios.scenarios import SCENARIOS, plan_of, require_scenario, title

SCENARIO_S = 30.0  # that all iterations of a scenario take about, where the user does not say how many
LONGEST_ON_CPU = {"agent": 1024, "independent": 256, "parallel": 256}
LONGEST_ON_CPU_ELSE, LONGEST_ON_GPU = 512, 8192
NUM_PROMPTS_ON_CPU, NUM_PROMPTS_ON_GPU = 8, 32
PREFIX_GROWS = 9 / 8  # from a prefix of a given length to the longest prompt
POOL_SHARE = 2  # the longest request takes at most one such part of a pool that was asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload(Stepped):
    """Scenarios, each at every hit rate and under every policy; a trace is named by its path.

    Lengths that are not given follow from the device, the model's positions and the pool (`pool_tokens`, which else
    holds everything, or half of it where policies are compared or `tiers` lie below). Times are seconds, goodput's
    limits milliseconds.
    """

    uses_tiers: ClassVar[bool] = True

    gpu: bool
    output_len: int
    scenarios: tuple[str, ...] = tuple(SCENARIOS)
    input_lens: tuple[int, ...] | None = None
    prefix_len: int | None = None
    hit_rates: tuple[float, ...] | None = None
    num_prompts: int | None = None
    concurrency: int | None = None
    request_rate: float | None = None
    burstiness: float = 1.0
    think_s: float = 0.0
    time_scale: float = 1.0
    pool_tokens: int | None = None
    evictions: tuple[str, ...] = ("lru",)
    preemptions: tuple[str, ...] = ("youngest",)
    priorities: tuple[Retention, ...] = ()
    goodput_ms: dict[str, float] = field(default_factory=dict)
    tiers: bool = False
    most_tokens: int | None = None
    block_size: int = 16
    vocab_size: int = 0

    def __post_init__(self) -> None:
        require_positive("input length", *self.input_lens or ())
        require_positive("output length", self.output_len)
        require_positive("count", self.concurrency, self.num_prompts, self.prefix_len, self.pool_tokens)
        for name in self.scenarios:
            require_scenario(name)
        for name in self.evictions:
            eviction_policy(name)
        for name in self.preemptions:
            preemption_policy(name)
        require_arrivals(self.request_rate, self.burstiness)

    @classmethod
    def default(cls, *, gpu: bool) -> Workload:
        return cls(gpu=gpu, output_len=32 if gpu else 6)

    def fitted(self, model: Model, block_size: int, *, tiers: bool = False) -> Workload:
        """For the model's positions and vocabulary. Raises KvtoolError where half of the pool holds no page."""
        positions = model.max_position_embeddings
        limits = [] if positions is None else [positions]
        if self.pool_tokens is not None:
            limits.append(self.pool_tokens // block_size * block_size // POOL_SHARE)
        most = min(limits, default=None)
        if most is not None and most <= self.output_len:
            raise KvtoolError(f"{most} tokens, {self._limit_in_words()}, leave no prompt before {self.output_len} more")
        given = max((*(self.input_lens or ()), self.prefix_len or 0))
        if most is not None and given + self.output_len > most:
            asked = f"{given} prompt and {self.output_len} output tokens"
            raise KvtoolError(f"{asked} are more than {self._limit_in_words()}: {most}")
        vocab_size = model.vocab_size or 0
        return replace(self, most_tokens=most, block_size=block_size, vocab_size=vocab_size, tiers=tiers)

    def _limit_in_words(self) -> str:
        half = "" if self.pool_tokens is None else f" or half of --pool-tokens {self.pool_tokens}"
        return f"the model's positions{half}"

    @property
    def longest_tokens(self) -> int:
        return max(self.input_len(*case) for case in self.grid) + self.output_len

    @property
    def budget_s(self) -> float:
        return SCENARIO_S * len(self.grid)

    @property
    def grid(self) -> list[tuple[str, float | None]]:
        """Every scenario with every hit rate."""
        return list(product(self.scenarios, self.hit_rates or (None,)))

    @property
    def policies(self) -> list[tuple[str, str]]:
        """Every eviction policy with every preemption policy."""
        return list(product(self.evictions, self.preemptions))

    def most_pages(self, block_size: int) -> int:
        """Of the pools of one scenario: one a policy, and one for the arm without a prefix cache."""
        pools = (self.pool_pages([self.plan(*case, seed=0)]) for case in self.grid)
        return max(pools) * (len(self.policies) + 1)

    def input_len(self, scenario: str, hit_rate: float | None) -> int:
        """Of the longest prompt: as given, else one that suits the device and fits."""
        if self.input_lens is not None:
            return max(self.input_lens)
        usual = LONGEST_ON_GPU if self.gpu else LONGEST_ON_CPU.get(scenario, LONGEST_ON_CPU_ELSE)
        if self.prefix_len is not None:
            usual = 1 + int(self.prefix_len / hit_rate if hit_rate else self.prefix_len * PREFIX_GROWS)
        return usual if self.most_tokens is None else max(1, min(usual, self.most_tokens - self.output_len))

    def plan(self, scenario: str, hit_rate: float | None, *, seed: int) -> Plan:
        """The requests of one iteration. Raises KvtoolError for a hit rate that no such prompts have."""
        shape = Shape(
            num_prompts=self.num_prompts or (NUM_PROMPTS_ON_GPU if self.gpu else NUM_PROMPTS_ON_CPU),
            input_len=self.input_len(scenario, hit_rate),
            output_len=self.output_len,
            block_size=self.block_size,
            vocab_size=self.vocab_size,
            seed=seed,
            prefix_len=self.prefix_len,
            hit_rate=hit_rate,
            think_s=self.think_s,
        )
        plan = plan_of(scenario, shape, time_scale=self.time_scale)
        plan = plan.of_priorities(self.priorities)
        return plan.arriving(self.request_rate, burstiness=self.burstiness, seed=seed)

    def pool_pages(self, plans: Seq[Plan]) -> int:
        """Of a pool for any of these plans."""
        if self.pool_tokens is not None:
            return self.pool_tokens // self.block_size
        if len(self.policies) == 1 and not self.tiers:
            return max(plan.pages(self.block_size) for plan in plans)
        longest = max(ceil_div(plan.longest_tokens, self.block_size) for plan in plans)
        return max(POOL_SHARE * longest, max(plan.distinct_pages(self.block_size) for plan in plans) // 2)

    def steps(self, setup: Setup) -> Iterator[Step[Measured]]:
        for scenario, rate in self.grid:
            asked = "" if rate is None else f", {rate:.0%} hits"
            yield Step(f"workload: {title(scenario)}{asked}", partial(_measured, setup, self, scenario, rate))


def _measured(setup: Setup, options: Workload, scenario: str, hit_rate: float | None) -> Measured:
    """Its engines are made when its turn comes, and not all at once."""
    return Race(setup, options, scenario, hit_rate).measure()
