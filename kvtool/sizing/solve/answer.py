"""How many users, or how long a context, one engine serves on one layout: by the plan of its start."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from kvtool.errors import KvtoolError
from kvtool.sizing.card import card_memory
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.run import EngineRun, run_engine
from kvtool.sizing.fit import MAX_BATCH_SIZE, largest
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.plan import SizePlan
from kvtool.sizing.solve.start import start_of
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
    pool_bytes(plan, plan.options)
    bounds = [bound for bound in (plan.options.max_num_seqs, plan.options.max_num_batched_tokens) if bound is not None]
    most = min(bounds) * plan.options.parallel.dp if bounds else MAX_BATCH_SIZE
    longest = context or plan.options.max_context(plan.model) or MAX_LENGTH_TOKENS

    def holds(sequences: int, tokens: int) -> bool:
        return _holds(_run(plan, name, sequences, tokens), as_asked(plan.options, sequences, tokens), sequences)

    found_users, found_context = users or 0, longest
    if users is None:
        found_users = largest(lambda sequences: holds(sequences, longest), min(most, _bound(plan, name, longest)))
    elif context is None:
        found_context = largest(lambda tokens: holds(users, tokens), longest)
    elif not holds(users, context):
        found_users = 0
    return _answer(plan, name, found_users, found_context, asked_users=users, asked_context=context)


def _answer(
    plan: SizePlan, name: str, users: int, context: int, *, asked_users: int | None, asked_context: int | None
) -> Answer:
    """The answer, with the start that gives it; of the least that was asked for where there is none."""
    sequences, tokens = users or asked_users or 1, context or asked_context or 1
    options = as_asked(plan.options, sequences, tokens)
    run = _run(plan, name, sequences, tokens)
    _, memory = card_memory(plan.model, options, plan.weights)
    return Answer(
        start=run.options,
        options=options,
        users=users,
        context=context,
        capacity=run.holds(tokens, options.shared_prefix) * options.parallel.dp,
        pool_bytes=max(0, pool_bytes(plan, options)),
        margin_bytes=0 if memory is None or run.options.kv_cache_memory_bytes is not None else memory.margin_bytes,
        refusal=run.refusal,
        assumptions=run.assumptions,
    )


def _bound(plan: SizePlan, name: str, tokens: int) -> int:
    """More users than a start for one has room for, which has the most: the search need not look beyond."""
    options = as_asked(plan.options, 1, tokens)
    held = _run(plan, name, 1, tokens).holds(tokens, options.shared_prefix)
    return 2 * math.ceil(held + 1) * options.parallel.dp


def _holds(run: EngineRun, options: SizeOptions, users: int) -> bool:
    """Whether each replica has room for its part of the users, and runs so many."""
    sequences = options.parallel.sequences_of_replica(users)
    (context,) = options.contexts
    return sequences <= min(run.max_requests, run.holds(context, options.shared_prefix))


def _run(plan: SizePlan, name: str, users: int, context: int) -> EngineRun:
    options = as_asked(plan.options, users, context)
    limits, memory = card_memory(plan.model, options, plan.weights)
    if limits is None or memory is None:
        raise KvtoolError("--users asks what fits a card: name it with --gpu")
    return run_engine(plan.model, start_of(name, options, limits, memory), memory)


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


def pool_bytes(plan: SizePlan, options: SizeOptions) -> int:
    """What a GPU has for caches: given, else the budget's. Raises KvtoolError where the weights are not known."""
    if options.engine is not None and options.engine.kv_cache_memory_bytes is not None:
        return options.engine.kv_cache_memory_bytes
    _, memory = card_memory(plan.model, options, plan.weights)
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
