"""The no-cache part: what keeping K and V buys, and what each way of keeping them costs, at growing lengths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvtool.bench.accounting import step_bytes
from kvtool.bench.cases.arms import ARMS, Generated, generate
from kvtool.bench.cases.base import Iterations, Measured, Setup, Stepped, require_positive
from kvtool.bench.checks import compare_runs
from kvtool.bench.metrics import metrics_of
from kvtool.bench.session import Step
from kvtool.machine.memory import peak_memory
from kvtool.results import Check, Memory, NoCacheCase, Roofline, Sample
from kvtool.units import round_up
from kvtool.workloads import Request, fixed

MAX_PREALLOCATED_TOKENS = 8192  # of a model that allows more: the point is made, and it fits


@dataclass(frozen=True, slots=True, kw_only=True)
class NoCache(Stepped):
    """The lengths that the ways of keeping K and V are compared at."""

    input_lens: tuple[int, ...]
    output_len: int

    def __post_init__(self) -> None:
        require_positive("input length", *self.input_lens)
        require_positive("output length", self.output_len)

    @classmethod
    def default(cls, *, gpu: bool) -> NoCache:
        if gpu:
            return cls(input_lens=(512, 2048, 8192), output_len=8)
        return cls(input_lens=(64, 128, 256), output_len=4)

    @property
    def longest_tokens(self) -> int:
        return max(self.input_lens) + self.output_len

    def steps(self, setup: Setup) -> Iterator[Step[Measured]]:
        for length in self.input_lens:
            yield Step(f"with and without a cache: {length} tokens", Race(setup, length, self.output_len).measure)


class Race:
    """All arms at one length, in turns within each iteration: a case an arm."""

    def __init__(self, setup: Setup, input_len: int, output_len: int) -> None:
        self.setup = setup
        self.input_len, self.output_len = input_len, output_len
        model_max = setup.loaded.model.max_position_embeddings or MAX_PREALLOCATED_TOKENS
        self.max_tokens = max(input_len + output_len, min(model_max, MAX_PREALLOCATED_TOKENS))
        self.runs: dict[str, list[Generated]] = {arm: [] for arm in ARMS}
        self.peaks_bytes: dict[str, int | None] = {}

    def measure(self) -> Measured:
        iterations = self.setup.iterate(self._take_turns)
        return Measured([self._case(arm, iterations) for arm in ARMS], iterations.limits)

    def _take_turns(self, iteration: int) -> list[Sample]:
        prompt = self._request(iteration).prompt_ids
        order = ARMS if iteration % 2 == 0 else tuple(reversed(ARMS))
        return [self._sample(self._generate(arm, list(prompt)), arm, iteration) for arm in order]

    def _request(self, draw: int) -> Request:
        (request,) = fixed(
            batch_size=1,
            input_len=self.input_len,
            output_len=self.output_len,
            vocab_size=self.setup.loaded.vocab_size,
            seed=self.setup.seed + draw,
        )
        return request

    def _generate(self, arm: str, prompt: list[int]) -> Generated:
        """And keeps it, with the peak of memory that it had."""
        setup, loaded = self.setup, self.setup.loaded
        peak_bytes = peak_memory(loaded.device, apart_bytes=setup.windows.buffer_bytes)
        run = generate(loaded, arm, prompt, self.output_len, max_tokens=self.max_tokens)
        self.runs[arm].append(run)
        self.peaks_bytes[arm] = peak_bytes()
        return run

    def _sample(self, run: Generated, arm: str, iteration: int) -> Sample:
        return Sample(
            arm=arm,
            iteration=iteration,
            ttft_s=run.times_s[0],
            e2e_s=run.times_s[-1],
            itl_s=[b - a for a, b in zip(run.times_s, run.times_s[1:], strict=False)],
            output_tokens=len(run.output_ids),
            prompt_tokens=self.input_len,
            cached_tokens=0,
        )

    def _case(self, arm: str, iterations: Iterations) -> NoCacheCase:
        samples = [sample for sample in iterations.samples if sample.arm == arm]
        return NoCacheCase(
            name=f"no-cache/{arm}/{self.input_len}",
            inputs=self.setup.inputs(
                arm=arm,
                input_len=self.input_len,
                output_len=self.output_len,
                batch_size=1,
                max_tokens=self.max_tokens if arm == "preallocated" else None,
                num_iters_warmup=0,
                graphs=False,
            ),
            samples=samples,
            metrics=metrics_of(samples),
            bytes=step_bytes(self.setup.loaded, [self._request(0)]),
            roofline=Roofline(),
            memory=self._memory(arm),
            check=self._check(arm),
            load=iterations.load,
        )

    def _memory(self, arm: str) -> Memory:
        specs = self.setup.loaded.specs
        stored_tokens = self.input_len + self.output_len - 1
        held = self.runs[arm][-1].kv_bytes
        return Memory(
            kv_predicted_bytes=sum(spec.bytes_per_token for spec in specs) * self._kept_tokens(arm, stored_tokens),
            kv_allocated_bytes=held,
            kv_pool_bytes=None,
            kv_waste_bytes=0 if arm == "no_cache" else held - sum(spec.stored_bytes(stored_tokens) for spec in specs),
            peak_bytes=self.peaks_bytes[arm],
        )

    def _kept_tokens(self, arm: str, stored_tokens: int) -> int:
        """No tokens, just the tokens, the maximum, or whole pages."""
        return {
            "no_cache": 0,
            "contiguous": stored_tokens,
            "preallocated": self.max_tokens,
            "paged": round_up(stored_tokens, self.setup.loaded.config.block_size),
        }[arm]

    def _check(self, arm: str) -> Check:
        if arm == "paged":
            return Check(text="the arm the others are compared with")
        runs, dtype = self.runs, self.setup.loaded.dtype
        return compare_runs(runs[arm], runs["paged"], dtype=dtype, names=f"{arm} against paged")
