"""The inverse question: which layout, cache dtype, users or context an engine serves. Best first, with commands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kvtool.catalog.model import Model
from kvtool.errors import KvtoolError
from kvtool.results import ENGINE_NAMES, SizeDocument, SizeRejected, SizeSolution
from kvtool.sizing.dtypes import AUTO, canonical_dtype
from kvtool.sizing.fit import MAX_BATCH_SIZE
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.plan import SizePlan, make_plan
from kvtool.sizing.size import size
from kvtool.sizing.solve.answer import Served, as_asked, page_users, serve
from kvtool.sizing.solve.command import FIRST_NODE, NODE_GPUS, Command, command, nodes_of
from kvtool.sizing.solve.layouts import layouts_of
from kvtool.units import ceil_div

RANKING = "solutions: fewest GPUs first, then the cache dtypes in the order tried (least lossy first), then most users"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked; None or True stands for what is to be found. `served` is what an engine would load."""

    users: int | None
    context: int | None
    open_gpus: bool
    open_pp: bool
    open_dtype: bool
    served: str | None

    def __post_init__(self) -> None:
        if self.users is None and self.context is None:
            raise KvtoolError("--users max and an open context leave too much open: give --users N or --context TOKENS")
        if self.users is not None and not 1 <= self.users <= MAX_BATCH_SIZE:
            raise KvtoolError(f"users {self.users} must be from 1 to {MAX_BATCH_SIZE}, or max")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """One layout and cache dtype, and what each engine makes of it: its answer, or why it has none."""

    plan: SizePlan
    served: Mapping[str, Served]
    errors: Mapping[str, KvtoolError]

    @property
    def best(self) -> Served | None:
        """The answer of the engine that serves most."""
        found = [one for one in self.served.values() if one.answers]
        return max(found, key=lambda one: (one.users, one.context)) if found else None

    @property
    def parallel(self) -> Parallel:
        return self.plan.options.parallel


def solve(model: Model, options: SizeOptions, question: Question) -> tuple[SizeDocument, SizeOptions]:
    """Every setting that an engine would serve, and the size of the best; of the last one tried where there is none.
    Also the options of that size.

    Raises KvtoolError where it cannot be told: without a card or the bytes of the weights, or beyond the model.
    """
    _check(model, options, question)
    tried = [_try(model, options, question, *setting) for setting in _settings(model, options, question)]
    found = _ranked([one for one in tried if one.best is not None], tried)
    if not found:
        _raise_if_never_asked(tried)
    shown = _options_shown(options, found[0] if found else tried[-1], question)
    document = size(model, options=shown)
    solved = SizeDocument(
        rows=document.rows,
        solutions=[_solution(one, best, question) for one in found if (best := one.best)],
        rejected=[_rejected(one, question) for one in tried if one.best is None],
        assumptions=list(dict.fromkeys([*document.assumptions, *_assumptions(found)])),
    )
    return solved, shown


def _ranked(found: list[_Candidate], tried: list[_Candidate]) -> list[_Candidate]:
    order = list(dict.fromkeys(one.plan.cache_format.name for one in tried))

    def key(one: _Candidate) -> tuple[int, int, int, int]:
        users, context = (one.best.users, one.best.context) if one.best else (0, 0)
        return one.parallel.num_gpus, order.index(one.plan.cache_format.name), -users, -context

    return sorted(found, key=key)


def _raise_if_never_asked(tried: list[_Candidate]) -> None:
    """A value that no engine takes on any layout is a mistake, not a lack of memory."""
    if not any(one.served for one in tried):
        raise next(iter(tried[0].errors.values()))


def _options_shown(options: SizeOptions, shown: _Candidate, question: Question) -> SizeOptions:
    """The start of the engine that serves most, told as that engine's only where one was asked for."""
    served = shown.best or next(iter(shown.served.values()), None)
    if served is None:
        return as_asked(replace(shown.plan.options, engine=None), question.users or 1, question.context or 1)
    return replace(served.options, engine=None if options.engine is None else served.start)


def _check(model: Model, options: SizeOptions, question: Question) -> None:
    if options.gpu is None:
        raise KvtoolError("--users asks what fits a card: name it with --gpu")
    if options.calibration is not None and question.open_gpus:
        raise KvtoolError("--calibration was measured on one layout: say which with --tp")
    sequences = ceil_div(question.users or 1, options.parallel.dp)
    if options.max_num_seqs is not None and options.max_num_seqs < sequences:
        raise KvtoolError(f"--max-num-seqs {options.max_num_seqs} is less than the {sequences} users of a replica")
    tokens, sequences = options.max_num_batched_tokens, options.max_num_seqs or sequences
    if tokens is not None and tokens < sequences and question.users is not None:
        raise KvtoolError(
            f"--max-num-batched-tokens {tokens} is less than the {sequences} sequences of a step: each takes one token "
            "to decode"
        )
    limit = options.max_context(model)
    if question.context is not None and limit is not None and question.context > limit:
        raise KvtoolError(f"context {question.context} is longer than the {limit} tokens of {model.id}")
    if question.context is not None and options.shared_prefix > question.context:
        raise KvtoolError(f"shared prefix {options.shared_prefix} is longer than the context {question.context}")


def _settings(model: Model, options: SizeOptions, question: Question) -> Iterator[tuple[Parallel, str]]:
    dtypes = options.kv_cache_dtypes
    if question.open_dtype:
        own = canonical_dtype(model.dtype or "bf16")
        dtypes = ("bf16" if own == "fp32" else AUTO, "fp8")
    layouts = layouts_of(model, options, open_pp=question.open_pp) if question.open_gpus else [options.parallel]
    for layout in layouts:
        for dtype in dtypes:
            yield layout, dtype


def _try(model: Model, options: SizeOptions, question: Question, layout: Parallel, dtype: str) -> _Candidate:
    """What each engine asked for, else both, would serve at this setting."""
    base = replace(options, parallel=layout, kv_cache_dtypes=(dtype,), lengths=None, contexts=(), batch_sizes=(1,))
    plan = replace(make_plan(model, replace(base, engine=None), dtype), options=base)
    served: dict[str, Served] = {}
    errors: dict[str, KvtoolError] = {}
    for name in (options.engine.name,) if options.engine else ENGINE_NAMES:
        try:
            served[name] = serve(plan, name, users=question.users, context=question.context)
        except KvtoolError as error:
            errors[name] = error
    return _Candidate(plan=plan, served=served, errors=errors)


def _solution(one: _Candidate, best: Served, question: Question) -> SizeSolution:
    options = best.options
    commands = {name: _command(one, served, question) for name, served in one.served.items() if served.answers}
    lines = {name: found.line for name, found in commands.items()}
    reasons = [*_reasons(one, question), *(found.reason for found in commands.values() if found.reason)]
    return SizeSolution(
        **_setting(one),
        nodes=nodes_of(one.parallel),
        users=best.users,
        context=best.context,
        kv_bytes_per_gpu=one.plan.cache.bytes_per_gpu(
            tokens=best.context, batch_size=best.users, shared_prefix=options.shared_prefix
        ),
        kv_pool_bytes=best.pool_bytes,
        margin_bytes=best.margin_bytes,
        page_users=page_users(one.plan, best),
        vllm_users=_capacity(one, "vllm"),
        sglang_users=_capacity(one, "sglang"),
        vllm=lines.get("vllm"),
        sglang=lines.get("sglang"),
        reason="; ".join(dict.fromkeys(reasons)) or None,
    )


def _setting(one: _Candidate) -> dict[str, Any]:
    """The fields of a SizeSetting."""
    degrees = {name: getattr(one.parallel, name) for name in ("num_gpus", "tp", "pp", "dp", "dcp")}
    dtype = one.plan.cache_format.name
    return {**degrees, "enable_dp_attention": one.parallel.dp_attention, "kv_cache_dtype": dtype}


def _capacity(one: _Candidate, name: str) -> float | None:
    served = one.served.get(name)
    return None if served is None or served.refusal is not None else served.capacity


def _command(one: _Candidate, served: Served, question: Question) -> Command:
    return command(
        one.plan.model,
        served.start,
        served=question.served,
        cache_dtype=one.plan.cache_format.name,
        weight_dtype=one.plan.options.weight_dtype,
    )


def _rejected(one: _Candidate, question: Question) -> SizeRejected:
    return SizeRejected(
        **_setting(one),
        reason="; ".join(_reasons(one, question)),
    )


def _reasons(one: _Candidate, question: Question) -> Iterator[str]:
    """Why the engines do not serve what is asked, of those that do not."""
    yield from (f"{ENGINE_NAMES[name]}: {error}" for name, error in one.errors.items())
    for name, served in one.served.items():
        if served.refusal is not None:
            yield f"{ENGINE_NAMES[name]}: {served.refusal}"
        elif not served.answers:
            yield f"{ENGINE_NAMES[name]} holds {served.capacity:,.2f} of {question.users or 1:,} users"


def _assumptions(found: list[_Candidate]) -> Iterator[str]:
    yield RANKING
    yield (
        "solutions are by the plans that engines would make of the estimated pool, for requests all as long as the "
        "context; page_users counts whole pages of the formula, without what an engine pads or reserves"
    )
    for one in found[:1]:
        for served in one.served.values():
            yield from served.assumptions if served.refusal is None else ()
    if any(nodes_of(one.parallel) > 1 for one in found):
        yield (
            f"a node has {NODE_GPUS} GPUs; the commands are the first node's: put its address for {FIRST_NODE}, and on "
            "the others --node-rank 1, ... (vLLM: with --headless)"
        )
