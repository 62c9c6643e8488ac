"""One batch on one layout of ranks: computing, waiting and what was hidden, apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from kvtool.bench.accounting import step_bytes
from kvtool.bench.harness import Value, case_inputs, pages_for, sample_of
from kvtool.bench.metrics import metrics_of
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.ranks.lead import RankedModel
from kvtool.engine.ranks.replicas import Replicas, engine_on
from kvtool.engine.ranks.use import rank_uses
from kvtool.engine.sequence import SamplingParams
from kvtool.engine.sequence import Sequence as Running
from kvtool.machine.ranks.layout import RankLayout
from kvtool.machine.ranks.traffic import Asked, chosen_pass, replica_traffic, ring_of, step_traffic
from kvtool.results import Check, Memory, RankPhase, RankRun, RanksCase, Roofline, Sample
from kvtool.sizing.dtypes import FLOAT_BYTES
from kvtool.sizing.speed.exchange import Link
from kvtool.workloads import Request, fixed

NO_ROOFLINE = "ranks share the machine: their time is theirs together, next to no limit of one process"


@dataclass(frozen=True, slots=True)
class Meters:
    """Of one iteration: seconds of prefill and of all decode steps, and what of them the first rank waited."""

    prefill_s: float
    prefill_exposed_s: float
    decode_s: float
    decode_exposed_s: float
    sequences: list[Running]


@dataclass(frozen=True, slots=True)
class Sent:
    """Of one phase over all ranks, and seconds that the first rank takes for the same exchanges alone."""

    payload_bytes: float = 0.0
    socket_bytes: int | None = None
    alone_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksCell:
    """One batch on one layout. `expected` are the tokens of the first layout, None on that one itself."""

    loaded: LoadedModel
    layout: RankLayout
    input_len: int
    batch_size: int
    output_len: int
    num_iters: int
    seed: int
    block_size: int
    expected: list[list[int]] | None

    def measure(self) -> tuple[RanksCase, list[list[int]]]:
        """The case, and the tokens of its last iteration."""
        batches = [self._requests(draw) for draw in range(self.num_iters + 1)]
        engine = engine_on(
            self.loaded,
            num_pages=pages_for(batches[0], self.loaded.config.block_size),
            config=replace(self.loaded.config, prefill_first=True, prefix_caching=False),
        )
        sent = self._sent(engine, batches[0])
        for one in engines_of(engine):
            one.cache.reset_counters()
        meters = [self._iteration(engine, batch) for batch in batches[1:]]
        samples = [
            sample_of(sequence, arm="baseline", iteration=number)
            for number, meter in enumerate(meters)
            for sequence in meter.sequences
        ]
        tokens = [sequence.output_ids for sequence in meters[-1].sequences]
        return self._case(engine, batches[0], samples, meters, sent, tokens), tokens

    def _requests(self, draw: int) -> list[Request]:
        return fixed(
            batch_size=self.batch_size,
            input_len=self.input_len,
            output_len=self.output_len,
            vocab_size=self.loaded.vocab_size,
            seed=self.seed + draw,
        )

    def _iteration(self, engine: Engine | Replicas, requests: Sequence[Request]) -> Meters:
        sequences = add_all(engine, requests)
        clock, waited = engines_of(engine)[0].clock, self._exposed_s()
        start_s = clock()
        prefill(engine, sequences)
        middle_s, waited_then = clock(), self._exposed_s()
        for _ in engine.run_until_idle():
            pass
        return Meters(
            middle_s - start_s,
            waited_then - waited,
            clock() - middle_s,
            self._exposed_s() - waited_then,
            sequences,
        )

    @property
    def _link(self) -> Link | None:
        """As the first rank's group measured it, where the ring is chosen by it."""
        return self.loaded.seat.tokens.link if isinstance(self.loaded, RankedModel) else None

    def _exposed_s(self) -> float:
        return self.loaded.seat.meter.exposed_s if isinstance(self.loaded, RankedModel) else 0.0

    def _sent(self, engine: Engine | Replicas, requests: Sequence[Request]) -> tuple[Sent, Sent]:
        """Of prefill and decode, in an iteration that warms up: what is sent is counted, then sent again alone."""
        sequences = add_all(engine, requests)
        first = self._counted(lambda: prefill(engine, sequences))
        return first, self._counted(lambda: [None for _ in engine.run_until_idle()])

    def _counted(self, run: object) -> Sent:
        assert callable(run)
        if not isinstance(self.loaded, RankedModel):
            run()
            return Sent()
        before = [rank.socket_bytes for rank in self.loaded.facts()]
        self.loaded.begin_anew(records=True)
        run()
        facts = self.loaded.facts()
        after = [rank.socket_bytes for rank in facts]
        known = None not in before and None not in after
        sockets = sum(b or 0 for b in after) - sum(a or 0 for a in before) if known else None
        alone_s = self.loaded.replay_s()[0]
        self.loaded.begin_anew()
        return Sent(sum(rank.payload_bytes for rank in facts), sockets, alone_s)

    def _case(
        self,
        engine: Engine | Replicas,
        requests: Sequence[Request],
        samples: list[Sample],
        meters: Sequence[Meters],
        sent: tuple[Sent, Sent],
        tokens: list[list[int]],
    ) -> RanksCase:
        uses = rank_uses(self.loaded, engine.pool)
        page_bytes = self.loaded.page_bytes
        engines = engines_of(engine)
        allocated = sum(one.cache.counters().peak_pages for one in engines) * engine.pool.page_bytes
        return RanksCase(
            name=f"ranks/{str(self.layout).replace(' ', '')}/{self.input_len}x{self.batch_size}",
            inputs=self._inputs(),
            samples=samples,
            metrics=metrics_of(samples),
            bytes=step_bytes(self.loaded, requests),
            roofline=Roofline(reason=NO_ROOFLINE),
            memory=Memory(
                kv_predicted_bytes=pages_for(requests, self.loaded.config.block_size) * page_bytes,
                kv_allocated_bytes=allocated,
                kv_pool_bytes=sum(one.pool.bytes for one in engines),
                kv_waste_bytes=0,
                peak_bytes=None,
            ),
            check=self._check(tokens),
            ranks=RankRun(
                tp=self.layout.tp,
                cp=self.layout.cp,
                dcp=self.layout.dcp,
                dp=self.layout.dp,
                ring=self.layout.ring,
                prefill=self._prefill_phase(meters, sent[0]),
                decode=self._decode_phase(meters, sent[1]),
                ranks=uses,
            ),
        )

    def _check(self, tokens: list[list[int]]) -> Check:
        if self.expected is None:
            return Check(text="the first layout: nothing to compare its tokens with")
        equal = tokens == self.expected
        if self.loaded.dtype != "fp32":
            same = "the same tokens as" if equal else "other tokens than"
            return Check(text=f"{same} the first layout; in {self.loaded.dtype} sums in another order may differ")
        return Check(outputs_equal=equal, text="tokens against the first layout's")

    def _prefill_phase(self, meters: Sequence[Meters], sent: Sent) -> RankPhase:
        walls, waits = [m.prefill_s for m in meters], [m.prefill_exposed_s for m in meters]
        return self._phase(walls, waits, sent, self._prefill_steps())

    def _decode_phase(self, meters: Sequence[Meters], sent: Sent) -> RankPhase | None:
        """Of one step: those of an iteration together, divided by their number."""
        count = self.output_len - 1
        if not count:
            return None
        walls, waits = [m.decode_s / count for m in meters], [m.decode_exposed_s / count for m in meters]
        sockets = None if sent.socket_bytes is None else sent.socket_bytes // count
        one = Sent(sent.payload_bytes / count, sockets, sent.alone_s / count)
        first = self.input_len
        steps = [
            [Asked(start=first + i, stop=first + i + 1)] * (self.batch_size // self.layout.dp) for i in range(count)
        ]
        return self._phase(walls, waits, one, steps, divide=count)

    def _phase(
        self, walls: list[float], waits: list[float], sent: Sent, steps: list[list[Asked]], divide: int = 1
    ) -> RankPhase:
        model, layout = self.loaded.model, self.layout
        element = FLOAT_BYTES[self.loaded.dtype]
        formula = 0.0 if layout.ranks == 1 else sum(self._formula_bytes(step, element) for step in steps)
        wall_ms, exposed_ms = median(walls) * 1e3, median(waits) * 1e3
        shape = ring_of(model, model.layers[0], layout, element)
        return RankPhase(
            wall_ms=wall_ms,
            compute_ms=wall_ms - exposed_ms,
            exposed_ms=exposed_ms,
            alone_ms=sent.alone_s * 1e3,
            hidden_ms=max(0.0, sent.alone_s * 1e3 - exposed_ms),
            formula_bytes=round(formula / divide),
            sent_bytes=round(sent.payload_bytes),
            socket_bytes=sent.socket_bytes,
            goes_round=None if layout.token_shards == 1 else chosen_pass(shape, layout, steps[0], self._link),
        )

    def _formula_bytes(self, step: list[Asked], element_bytes: int) -> float:
        model, layout = self.loaded.model, self.layout
        if layout.dp == 1:
            return step_traffic(model, layout, step, element_bytes, self._link).total_bytes
        tokens, sampled = sum(one.stop - one.start for one in step), sum(one.is_sampled for one in step)
        return replica_traffic(model, [tokens] * layout.dp, [sampled] * layout.dp, element_bytes).total_bytes

    def _prefill_steps(self) -> list[list[Asked]]:
        """The steps that the scheduler makes of a replica's part of the batch: prompts in a row, cut at the most tokens
        of a step."""
        steps: list[list[Asked]] = []
        most, room = self.loaded.config.max_num_batched_tokens, 0
        for _ in range(self.batch_size // self.layout.dp):
            start = 0
            while start < self.input_len:
                if not room:
                    steps.append([])
                    room = most
                stop = min(self.input_len, start + room)
                steps[-1].append(Asked(start=start, stop=stop, is_sampled=stop == self.input_len))
                room -= stop - start
                start = stop
        return steps

    def _inputs(self) -> dict[str, Value]:
        return {
            **case_inputs(self.loaded),
            "block_size": self.block_size,
            "tp": self.layout.tp,
            "cp": self.layout.cp,
            "dcp": self.layout.dcp,
            "dp": self.layout.dp,
            "ring": self.layout.ring if self.layout.token_shards > 1 else None,
            "input_len": self.input_len,
            "output_len": self.output_len,
            "batch_size": self.batch_size,
            "num_iters": self.num_iters,
            "num_iters_warmup": 1,
            "seed": self.seed,
        }


def engines_of(engine: Engine | Replicas) -> list[Engine]:
    """One, or that of each replica."""
    return engine.engines if isinstance(engine, Replicas) else [engine]


def add_all(engine: Engine | Replicas, requests: Sequence[Request]) -> list[Running]:
    """All requests at once."""
    return [engine.add(list(r.prompt_ids), SamplingParams(max_tokens=r.output_len)) for r in requests]


def prefill(engine: Engine | Replicas, sequences: Sequence[Running]) -> None:
    """Until each has its first token."""
    while any(not sequence.num_output for sequence in sequences):
        engine.step()
