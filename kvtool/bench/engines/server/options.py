"""What a server is asked: prompts of a length or of a workload, how often, and what stands beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from random import Random

from kvtool.catalog.gpus import Gpu
from kvtool.engine.config import DEFAULT_BLOCK_SIZE
from kvtool.engine.endpoint.server import Server
from kvtool.system.errors import KvtoolError
from kvtool.workloads.prompts import distinct_tokens, random_tokens
from kvtool.workloads.scenarios.base import Plan, Shape, Turn
from kvtool.workloads.scenarios.scenarios import plan_of, require_scenario, title

FIXED = "prompts"  # the scenario of prompts that share a prefix at most
LONGEST_ELSE = 512  # tokens of a workload's longest prompt, where the user does not say
MOST_IN_FLIGHT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Its fields bear the names of the flags. Without `scenarios`, prompts of every `input_lens` at every `hit_rates`;
    `salt` parts the prompts of this run from those of any other, so that none of them is warm by accident."""

    scenarios: tuple[str, ...] = ()
    input_lens: tuple[int, ...] = (LONGEST_ELSE,)
    output_len: int = 32
    prefix_len: int | None = None
    hit_rates: tuple[float, ...] | None = None
    num_prompts: int = 16
    concurrency: int | None = None
    request_rate: float | None = None
    burstiness: float = 1.0
    think_s: float = 0.0
    time_scale: float = 1.0
    goodput_ms: dict[str, float] = field(default_factory=dict)
    num_iters: int = 3
    num_iters_warmup: int = 1
    seed: int = 0
    salt: int = 0
    block_size: int = DEFAULT_BLOCK_SIZE
    chat: bool = False
    reset_cache: bool = False
    gpu: Gpu | None = None
    tp: int = 1

    def __post_init__(self) -> None:
        for name in ("output_len", "num_prompts", "num_iters", "concurrency", "block_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise KvtoolError(f"--{name.replace('_', '-')} {value} must be at least 1")
        if self.num_iters_warmup < 0:
            raise KvtoolError(f"--num-iters-warmup {self.num_iters_warmup} must not be negative")
        for name in self.scenarios:
            require_scenario(name)
        at_once = min(self.num_prompts, self.concurrency or self.num_prompts)
        if at_once > MOST_IN_FLIGHT:
            raise KvtoolError(f"{at_once} requests at a time are more than {MOST_IN_FLIGHT} connections: --concurrency")

    @property
    def grid(self) -> list[tuple[str, int, float | None]]:
        """Scenario, longest prompt and hit rate of each case."""
        scenarios: Sequence[str] = self.scenarios or (FIXED,)
        rates: Sequence[float | None] = self.hit_rates or (None if self.scenarios else 0.0,)
        return list(product(scenarios, self.input_lens, rates))

    def block_tokens(self, server: Server) -> int:
        """The granularity of prefix hits: what the server says, else --block-size."""
        return server.block_tokens or self.block_size

    def plan(self, case: tuple[str, int, float | None], server: Server, vocab_size: int, draw: int) -> Plan:
        """The requests of one iteration. Raises KvtoolError for a hit rate that no such prompts have."""
        scenario, input_len, hit_rate = case
        shape = Shape(
            num_prompts=self.num_prompts,
            input_len=input_len,
            output_len=self.output_len,
            block_size=self.block_tokens(server),
            vocab_size=vocab_size,
            seed=(self.salt << 20) + self.seed * 1009 + draw,
            prefix_len=self.prefix_len,
            hit_rate=hit_rate,
            think_s=self.think_s,
        )
        plan = prefixed(shape) if scenario == FIXED else plan_of(scenario, shape, time_scale=self.time_scale)
        return plan.arriving(self.request_rate, burstiness=self.burstiness, seed=shape.seed)

    def case_name(self, case: tuple[str, int, float | None]) -> str:
        """`endpoint/prompts/512/0.5/8 at a time`."""
        scenario, input_len, hit_rate = case
        rate = () if hit_rate is None else (f"{hit_rate:g}",)
        limit = () if self.concurrency is None else (f"{self.concurrency} at a time",)
        return "/".join(("endpoint", title(scenario), str(input_len), *rate, *limit))


def prefixed(shape: Shape) -> Plan:
    """Prompts of one length whose common prefix, the requested share of them rounded down to whole blocks, is computed
    before the clock starts."""
    rng = Random(f"{FIXED} {shape.seed}")
    share = shape.hit_rate or 0.0
    cached = shape.shared_len(share) if share or shape.prefix_len else 0
    prefix = random_tokens(rng, cached, shape.vocab_size)
    own = distinct_tokens(rng, shape.num_prompts + 1, shape.vocab_size)
    turns = tuple(
        Turn(
            own_ids=(*prefix, token, *random_tokens(rng, shape.input_len - cached - 1, shape.vocab_size)),
            output_len=shape.output_len,
            prompt_tokens=shape.input_len,
            cached_tokens=cached,
        )
        for token in own[1:]
    )
    return Plan(turns=turns, priming=((*prefix, own[0]),) if cached else ())
