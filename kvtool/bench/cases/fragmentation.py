"""The fragmentation part: the same requests through four allocators, counted in tokens and told in bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from kvtool.bench.cases.base import Measured, Setup, Stepped, require_positive
from kvtool.bench.fragmentation.allocators import Allocator, Contiguous, Grown, Paged
from kvtool.bench.fragmentation.arrivals import Request, chat_requests
from kvtool.bench.fragmentation.holes import PLACEMENTS, Placement
from kvtool.bench.fragmentation.run import Outcome, run_requests
from kvtool.bench.harness import Value
from kvtool.bench.session import Step
from kvtool.results import Check, Fragmentation, FragmentationCase, Memory, Metrics, Roofline, StepBytes
from kvtool.system.errors import KvtoolError

RESERVES = ("max", "pow2", "exact")


@dataclass(frozen=True, slots=True, kw_only=True)
class FragmentationPart(Stepped):
    """How many requests, of at most `max_model_len` tokens, and the pool they share; prompts of a group begin with
    `prefix_len` tokens that are the same. `reserve_len`: what `contiguous` reserves instead of the maximum."""

    num_prompts: int = 200
    pool_tokens: int = 16384
    max_model_len: int = 2048
    prefix_len: int = 0
    reserve_len: int | None = None
    placement: str = "first-fit"

    computes: ClassVar[bool] = False
    timed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_positive("count", self.num_prompts, self.pool_tokens, self.reserve_len)
        if self.max_model_len < 2 or self.prefix_len >= self.max_model_len:
            raise KvtoolError(
                f"a prefix of {self.prefix_len} tokens leaves no room in sequences of {self.max_model_len}: at least "
                "one token of a prompt and one of its answer are its own"
            )
        if self.placement not in PLACEMENTS:
            raise KvtoolError(f"unknown placement {self.placement!r}: choose from {', '.join(PLACEMENTS)}")

    @classmethod
    def default(cls, *, gpu: bool) -> FragmentationPart:
        return cls(prefix_len=64)

    @property
    def longest_tokens(self) -> int:
        """None runs; what else runs beside needs at least a prompt and an answer."""
        return 2

    def steps(self, setup: Setup) -> Iterator[Step[Measured]]:
        loaded, inputs = setup.loaded, setup.inputs(num_iters_warmup=0)
        token_bytes = sum(spec.bytes_per_token for spec in loaded.specs)
        for arm in self.arms(loaded.config.block_size):
            measure = partial(self._measured, arm, token_bytes, loaded.config.block_size, inputs, setup.seed)
            yield Step(f"fragmentation: {arm}", measure)

    def _measured(self, *asked: Any) -> Measured:
        return Measured([self.case_of(*asked)], [])

    def arms(self, block_size: int) -> list[str]:
        """The names of the cases. Raises KvtoolError for a pool of less than a page."""
        if self.pool_tokens < block_size:
            raise KvtoolError(f"a pool of {self.pool_tokens} tokens has no page of {block_size}")
        return [*(f"contiguous-{reserve}" for reserve in RESERVES), "grown", "paged", "shared"]

    def case_of(
        self, arm: str, token_bytes: int, block_size: int, inputs: dict[str, Value], seed: int
    ) -> FragmentationCase:
        """The requests through one allocator."""
        requests = chat_requests(
            self.num_prompts, max_tokens=self.max_model_len, prefix_tokens=self.prefix_len, seed=seed
        )
        outcome = run_requests(self._allocator(arm, block_size), requests, self.pool_tokens)
        return _case(arm, self, outcome, token_bytes, inputs, sum(request.total_tokens for request in requests))

    def _allocator(self, arm: str, block_size: int) -> Allocator:
        allocator, _, reserve = arm.partition("-")
        memory: Placement = PLACEMENTS[self.placement](self.pool_tokens)
        if allocator == "contiguous":
            return Contiguous(memory, lambda request: self._reserved(request, reserve))
        if allocator == "grown":
            return Grown(memory)
        return Paged(self.pool_tokens, block_size, shares=allocator == "shared")

    def _reserved(self, request: Request, reserve: str) -> int:
        """As the systems that the paper on vLLM compares with: the maximum, the answer rounded up to a power of two, or
        what will be needed, which nobody knows beforehand."""
        if reserve == "max":
            return self.reserve_len or self.max_model_len
        if reserve == "pow2":
            return min(self.max_model_len, request.prompt_tokens + (1 << (request.output_tokens - 1).bit_length()))
        return request.total_tokens


def _case(
    arm: str, part: FragmentationPart, outcome: Outcome, token_bytes: int, inputs: dict[str, Value], asked: int
) -> FragmentationCase:
    allocator, _, reserve = arm.partition("-")
    found = _bytes(allocator, outcome, part.pool_tokens, token_bytes)
    return FragmentationCase(
        name=f"fragmentation/{arm}",
        inputs={
            **inputs,
            "allocator": allocator,
            "reserve": reserve or None,
            "placement": part.placement if allocator in ("contiguous", "grown") else None,
            "num_prompts": part.num_prompts,
            "pool_tokens": part.pool_tokens,
            "max_model_len": part.max_model_len,
            "reserve_len": part.reserve_len if reserve == "max" else None,
            "prefix_len": part.prefix_len,
        },
        samples=[],
        metrics=Metrics.none(),
        bytes=StepBytes(weights_read=0, kv_read=0, kv_written=token_bytes, other=0, prefill_flops=0, decode_flops=0),
        roofline=Roofline(reason="nothing is timed"),
        memory=Memory(
            kv_predicted_bytes=found.reserved_bytes,
            kv_allocated_bytes=found.reserved_bytes,
            kv_pool_bytes=found.pool_bytes,
            kv_waste_bytes=found.internal_bytes,
            peak_bytes=None,
        ),
        check=_check(outcome, asked),
        fragmentation=found,
    )


def _bytes(allocator: str, outcome: Outcome, pool_tokens: int, token_bytes: int) -> Fragmentation:
    """What was counted in tokens."""
    full, waited = outcome.fullest, max(1, outcome.waited_steps) * pool_tokens
    return Fragmentation(
        allocator=allocator,
        pool_bytes=pool_tokens * token_bytes,
        reserved_bytes=full.reserved * token_bytes,
        used_bytes=full.used * token_bytes,
        internal_bytes=(full.reserved - full.used) * token_bytes,
        external_bytes=full.external * token_bytes,
        largest_hole_bytes=full.largest_hole * token_bytes,
        refused_requests=outcome.refused,
        interrupted_requests=outcome.interrupted,
        largest_batch=outcome.largest_batch,
        completed_tokens=outcome.completed_tokens,
        steps=outcome.steps,
        used_ratio=outcome.used_sum / waited,
        internal_ratio=(outcome.reserved_sum - outcome.used_sum) / waited,
        external_ratio=outcome.external_sum / waited,
        map=[(offset * token_bytes, size * token_bytes, owner) for offset, size, owner in full.pieces],
    )


def _check(outcome: Outcome, asked: int) -> Check:
    """Whether every request came to its end, by the tokens that were to come out."""
    if outcome.refused:
        return Check(text=f"{outcome.refused} requests had no room in an empty pool")
    equal = outcome.completed_tokens == asked
    return Check(outputs_equal=equal, text=f"{outcome.completed_tokens:,} of {asked:,} tokens asked for")
