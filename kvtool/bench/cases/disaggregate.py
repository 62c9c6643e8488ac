"""The disaggregate part: the same requests served by engines that do both, and by some that prefill for others."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from kvtool.bench.cases.base import Repeats, Standalone, require_arrivals, require_positive
from kvtool.bench.cases.goodput import goodput_ratio
from kvtool.bench.definitions import DEFINITIONS
from kvtool.bench.metrics import metrics_of
from kvtool.bench.session import Outcome, Progress, Session, Step
from kvtool.catalog.model import Model
from kvtool.engine.config import EngineConfig, resolve_dtype, truncated
from kvtool.engine.handover.fleet import Fleet, start_fleet
from kvtool.engine.handover.messages import Ask, Served
from kvtool.engine.handover.options import Disaggregation
from kvtool.engine.handover.summary import handover_of, sample_of_served
from kvtool.engine.loaded import TORCH_DTYPES
from kvtool.engine.pool import pool_specs
from kvtool.engine.sequence import SamplingParams
from kvtool.machine.device import resolve_device
from kvtool.results import (
    BenchDocument,
    Check,
    DisaggregateCase,
    Disaggregated,
    Memory,
    Roofline,
    Sample,
    StepBytes,
)
from kvtool.sizing.formats import parse_cache_format
from kvtool.sizing.layers import layer_specs
from kvtool.system.errors import KvtoolError
from kvtool.units import ceil_div
from kvtool.workloads import Request, random_arrivals

NO_ROOFLINE = "engines share the machine: their time is theirs together, next to no limit of one process"
NO_BYTES = StepBytes(weights_read=0, kv_read=0, kv_written=0, other=0, prefill_flops=0, decode_flops=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DisaggregatePart(Standalone):
    """`num_prompts` requests of the first input length, which begin with `prefix_len` tokens that are the same; at
    random times at `request_rate`, else all at once. As many engines that do both serve them too."""

    disaggregation: Disaggregation = field(default_factory=Disaggregation)
    input_lens: tuple[int, ...] = (256,)
    output_len: int = 16
    prefix_len: int = 0
    num_prompts: int = 8
    request_rate: float | None = None
    burstiness: float = 1.0
    goodput_ms: dict[str, float] | None = None

    def __post_init__(self) -> None:
        require_positive("input length", *self.input_lens)
        require_positive("count", self.output_len, self.num_prompts)
        require_arrivals(self.request_rate, self.burstiness)
        if self.prefix_len >= min(self.input_lens):
            raise KvtoolError(
                f"--prefix-len {self.prefix_len} leaves nothing of prompts of {min(self.input_lens)} tokens"
            )

    @classmethod
    def default(cls, *, gpu: bool) -> DisaggregatePart:
        return cls(input_lens=(4096,), output_len=64, num_prompts=32) if gpu else cls()

    @property
    def longest_tokens(self) -> int:
        return max(self.input_lens) + self.output_len

    @property
    def most_sequences(self) -> int:
        return self.num_prompts

    def measure(self, model: Model, config: EngineConfig, asked: Repeats, progress: Progress) -> Outcome[BenchDocument]:
        return _measured(model, config, self, asked, progress)

    def asks(self, input_len: int, vocab_size: int, seed: int) -> list[Ask]:
        """Prompts that no other seed has."""
        draw = random.Random(seed)
        shared = [draw.randrange(vocab_size) for _ in range(self.prefix_len)]
        own = input_len - self.prefix_len
        requests = [
            Request(
                prompt_ids=tuple(shared + [draw.randrange(vocab_size) for _ in range(own)]), output_len=self.output_len
            )
            for _ in range(self.num_prompts)
        ]
        if self.request_rate is not None:
            requests = random_arrivals(requests, self.request_rate, seed, burstiness=self.burstiness)
        params = SamplingParams(max_tokens=self.output_len)
        return [
            Ask(request=i, prompt=list(r.prompt_ids), params=params, arrival_s=r.arrival_s)
            for i, r in enumerate(requests)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """Both ways of serving, of one model and config. `tokens` keeps what the first way said."""

    model: Model
    config: EngineConfig
    part: DisaggregatePart
    num_iters: int
    seed: int
    dtype: str
    tokens: dict[int, list[list[list[int]]]]

    def measure(self, asked: Disaggregation | int, input_len: int) -> DisaggregateCase:
        """The requests of each iteration, after one that warms up, by engines of that way."""
        longest = input_len + self.part.output_len
        pages = self.part.num_prompts * ceil_div(longest, self.config.block_size)
        fleet = start_fleet(self.model, self.config, asked, max_positions=longest + 1, num_pages=pages)
        try:
            self._run(fleet, input_len, 0)
            rounds = [self._run(fleet, input_len, 1 + i) for i in range(self.num_iters)]
        finally:
            fleet.close()
        return self.case(asked, input_len, rounds, fleet.pool_bytes, pages * len(fleet.members))

    def _run(self, fleet: Fleet, input_len: int, number: int) -> list[Served]:
        assert self.model.vocab_size is not None
        return fleet.run(self.part.asks(input_len, self.model.vocab_size, self.seed + number))

    def case(
        self, asked: Disaggregation | int, input_len: int, rounds: list[list[Served]], pool_bytes: int, pages: int
    ) -> DisaggregateCase:
        """Of what was served in each iteration, by engines that have so many pages of so many bytes together."""
        samples = [
            sample_of_served(one, arm="baseline", iteration=i) for i, served in enumerate(rounds) for one in served
        ]
        said = [[one.tokens for one in served] for served in rounds]
        mode = "aggregated" if isinstance(asked, int) else "disaggregated"
        return DisaggregateCase(
            name=f"disaggregate/{mode}/{input_len}",
            inputs=self._inputs(asked, input_len),
            samples=samples,
            metrics=metrics_of(samples, queues=True),
            bytes=NO_BYTES,
            roofline=Roofline(reason=NO_ROOFLINE),
            memory=self._memory(pool_bytes, pages),
            check=self._check(input_len, said),
            disaggregate=self._told(mode, asked, rounds, samples),
        )

    def _told(
        self, mode: str, asked: Disaggregation | int, rounds: list[list[Served]], samples: Sequence[Sample]
    ) -> Disaggregated:
        every = [one for served in rounds for one in served]
        return Disaggregated(
            mode=mode,
            engines=asked if isinstance(asked, int) else asked.prefill + asked.decode,
            goodput_ratio=goodput_ratio(samples, self.part.goodput_ms or {}),
            handover=None if isinstance(asked, int) else handover_of(every, asked),
        )

    def _check(self, input_len: int, said: list[list[list[int]]]) -> Check:
        first = self.tokens.setdefault(input_len, said)
        if first is said:
            return Check(text="the first way: nothing to compare its tokens with")
        if self.dtype != "fp32":
            same = "the same tokens" if first == said else "other tokens"
            return Check(text=f"{same} as engines that do both; in {self.dtype} batches of another size may differ")
        return Check(outputs_equal=first == said, text="tokens against those of engines that do both")

    def _memory(self, pool_bytes: int, pages: int) -> Memory:
        specs = pool_specs(layer_specs(self.model, parse_cache_format(self._cache_dtype, self.dtype)))
        predicted = pages * sum(spec.page_bytes(self.config.block_size) for spec in specs)
        return Memory(
            kv_predicted_bytes=predicted,
            kv_allocated_bytes=pool_bytes,
            kv_pool_bytes=pool_bytes,
            kv_waste_bytes=0,
            peak_bytes=None,
        )

    @property
    def _cache_dtype(self) -> str:
        return self.dtype if self.config.kv_cache_dtype == "auto" else self.config.kv_cache_dtype

    def _inputs(self, asked: Disaggregation | int, input_len: int) -> dict[str, str | int | float | bool | None]:
        part, config = self.part, self.config
        return {
            "model": self.model.id,
            "weights": config.weights,
            "dtype": self.dtype,
            "kv_cache_dtype": self._cache_dtype,
            "block_size": config.block_size,
            "num_layers": self.model.num_layers,
            "device": config.device,
            "disaggregate": None if isinstance(asked, int) else str(asked),
            "input_len": input_len,
            "output_len": part.output_len,
            "prefix_len": part.prefix_len,
            "num_prompts": part.num_prompts,
            "request_rate": part.request_rate,
            "burstiness": None if part.request_rate is None else part.burstiness,
            "num_iters": self.num_iters,
            "num_iters_warmup": 1,
            "seed": self.seed,
        }


def _measured(
    model: Model, config: EngineConfig, part: DisaggregatePart, asked: Repeats, progress: Progress
) -> Outcome[BenchDocument]:
    """First as many engines that do both, then those that are apart."""
    device, apart = resolve_device(config.device), part.disaggregation
    dtype = resolve_dtype(config.dtype, model, device)
    session = Session(str(device), TORCH_DTYPES[dtype], progress)
    ways = Ways(
        model=truncated(model, config.num_layers),
        config=config,
        part=part,
        num_iters=asked.num_iters,
        seed=asked.seed,
        dtype=dtype,
        tokens={},
    )
    ranks = apart.prefill * apart.prefill_tp + apart.decode * apart.decode_tp
    steps = [
        Step(f"{name}: {input_len} tokens", partial(ways.measure, way, input_len))
        for input_len in part.input_lens
        for name, way in ((f"{ranks} engines", ranks), (str(apart), apart))
    ]
    cases = session.run(steps, total=len(steps))
    conditions = session.end()
    document = BenchDocument(
        environment=conditions.environment,
        definitions=DEFINITIONS,
        assumptions=[
            "all engines share one machine: what separate machines would gain by is not seen here",
            *conditions.warnings(cases),
        ],
        cases=list(cases),
    )
    unequal = [case.name for case in cases if case.check.outputs_equal is False]
    return Outcome(
        document=document, interrupted=conditions.interrupted, errors=[*conditions.failures], unequal=unequal
    )
