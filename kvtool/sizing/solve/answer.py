"""How many users, or how long a context, one engine serves on one layout: by the plan of its start."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from kvtool.sizing.card import card_memory
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.run import EngineRun, run_engine
from kvtool.sizing.fit import MAX_BATCH_SIZE, Budget, largest
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.plan import SizePlan
from kvtool.sizing.solve.start import start_of
from kvtool.system.errors import KvtoolError
from kvtool.units import MAX_LENGTH_TOKENS, ceil_div


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One engine's answer: `users` sequences of `context` tokens, one of them 0 where it does not serve what is asked.

    `capacity` is how many such sequences the pools of its `start` hold, all replicas together; `options` are those of a
    size of that start. `pool_bytes` is what a GPU has for caches by the budget, give or take `margin_bytes`; a
    `refusal` says why it would not start, `assumptions` what its plan takes for given.
    """

    start: EngineOptions
    options: SizeOptions
    users: int
    context: int
    capacity: float
    pool_bytes: int
    margin_bytes: int
    refusal: str | None
    assumptions: tuple[str, ...]

    @property
    def serves(self) -> bool:
        """Whether it is a yes."""
        return self.users > 0 and self.context > 0


def answer(plan: SizePlan, name: str, *, users: int | None, context: int | None) -> Answer:
    """The most users for a context, or the longest context for users: whichever is None; both where they are served.

    Raises KvtoolError for what the engine cannot be asked, and where the weights are not known.
    """
    _known_pool(plan, plan.options, plan.memory)
    bounds = [bound for bound in (plan.options.max_num_seqs, plan.options.max_num_batched_tokens) if bound is not None]
    most = min(bounds) * plan.options.parallel.dp if bounds else MAX_BATCH_SIZE
    longest = context or plan.options.max_context(plan.model) or MAX_LENGTH_TOKENS
    starts = _Starts(plan, name)
    found_users, found_context = users or 0, longest
    if users is None:
        bound = min(most, _bound(starts.at(1, longest)))
        found_users = largest(lambda sequences: starts.at(sequences, longest).holds(sequences), bound)
    elif context is None:
        found_context = largest(lambda tokens: starts.at(users, tokens).holds(users), longest)
    elif not starts.at(users, context).holds(users):
        found_users = 0
    return _answer(
        plan, starts.at(found_users or users or 1, found_context or context or 1), found_users, found_context
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Started:
    """One engine started for so many users of one context, and the budget of its card."""

    options: SizeOptions
    run: EngineRun
    memory: Budget

    @property
    def capacity(self) -> float:
        """Requests of the context that one replica holds."""
        (context,) = self.options.contexts
        return self.run.holds(context, self.options.shared_prefix)

    def holds(self, users: int) -> bool:
        """Whether each replica has room for its part of the users, and runs so many."""
        sequences = self.options.parallel.sequences_of_replica(users)
        return sequences <= min(self.run.max_requests, self.capacity)


class _Starts:
    """The starts that a search has tried: its answer is one of them, and is asked for again."""

    def __init__(self, plan: SizePlan, name: str) -> None:
        self.plan, self.name = plan, name
        self.tried: dict[tuple[int, int], _Started] = {}

    def at(self, users: int, context: int) -> _Started:
        if (users, context) not in self.tried:
            self.tried[users, context] = self._start(as_asked(self.plan.options, users, context))
        return self.tried[users, context]

    def _start(self, options: SizeOptions) -> _Started:
        plan = self.plan
        limits, memory = card_memory(plan.model, options, plan.weights)
        if limits is None or memory is None:
            raise KvtoolError("--users asks what fits a card: name it with --gpu")
        run = run_engine(plan.model, start_of(self.name, options, limits, memory), memory)
        return _Started(options=options, run=run, memory=memory)


def _answer(plan: SizePlan, started: _Started, users: int, context: int) -> Answer:
    """The answer, with the start that gives it; of the least that was asked for where there is none."""
    run, options = started.run, started.options
    return Answer(
        start=run.options,
        options=options,
        users=users,
        context=context,
        capacity=started.capacity * options.parallel.dp,
        pool_bytes=max(0, _known_pool(plan, options, started.memory)),
        margin_bytes=0 if run.options.kv_cache_memory_bytes is not None else started.memory.margin_bytes,
        refusal=run.refusal,
        assumptions=run.assumptions,
    )


def _bound(one: _Started) -> int:
    """More users than a start for one has room for, which has the most: the search need not look beyond."""
    return 2 * math.ceil(one.capacity + 1) * one.options.parallel.dp


def as_asked(options: SizeOptions, users: int, context: int) -> SizeOptions:
    """The options of an engine that is started for just these users and this context."""
    return replace(
        options,
        contexts=(context,),
        batch_sizes=(users,),
        shared_prefix=min(options.shared_prefix, context),
        max_model_len=context,
        max_num_seqs=options.max_num_seqs or ceil_div(users, options.parallel.dp),
    )


def _known_pool(plan: SizePlan, options: SizeOptions, memory: Budget | None) -> int:
    """What a GPU has for caches: given, else the budget's. Raises KvtoolError where the weights are not known."""
    if options.engine is not None and options.engine.kv_cache_memory_bytes is not None:
        return options.engine.kv_cache_memory_bytes
    if memory is None or memory.kv_pool_bytes is None:
        raise KvtoolError(f"{plan.model.id}: weights {plan.weights.source}; --calibration can give them")
    return memory.kv_pool_bytes


def page_users(plan: SizePlan, found: Answer) -> int:
    """Users that whole pages of the formula would hold in the same pool: without what an engine pads or reserves."""
    (context,) = found.options.contexts
    return largest(
        lambda users: (
            plan.cache.bytes_per_gpu(tokens=context, batch_size=users, shared_prefix=found.options.shared_prefix)
            <= found.pool_bytes
        ),
        MAX_BATCH_SIZE,
    )
