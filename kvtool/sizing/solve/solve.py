"""The inverse question: which layout, cache dtype, users or context an engine serves. Best first, with commands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kvtool.catalog.model import Model
from kvtool.errors import KvtoolError
from kvtool.results import ENGINE_NAMES, SizeDocument, SizeRejected, SizeSolution
from kvtool.results.size import FIRST_NODE
from kvtool.sizing.dtypes import AUTO, canonical_dtype
from kvtool.sizing.fit import MAX_BATCH_SIZE
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.plan import SizePlan, make_plan
from kvtool.sizing.size import size
from kvtool.sizing.solve.answer import Answer, answer, as_asked, page_users
from kvtool.sizing.solve.command import NODE_GPUS, Command, command, nodes_of
from kvtool.sizing.solve.layouts import layouts_of
from kvtool.units import ceil_div

RANKING = "solutions: fewest GPUs first, then the cache dtypes in the order tried (least lossy first), then most users"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked; None or True stands for what is to be found. `loads` is what an engine would load."""

    users: int | None
    context: int | None
    open_gpus: bool
    open_pp: bool
    open_dtype: bool
    loads: str | None

    def __post_init__(self) -> None:
        if self.users is None and self.context is None:
            raise KvtoolError("--users max and an open context leave too much open: give --users N or --context TOKENS")
        if self.users is not None and not 1 <= self.users <= MAX_BATCH_SIZE:
            raise KvtoolError(f"users {self.users} must be from 1 to {MAX_BATCH_SIZE}, or max")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """One layout and cache dtype, and what each engine makes of it: its answer, or why it has none."""

    plan: SizePlan
    answers: Mapping[str, Answer]
    errors: Mapping[str, KvtoolError]

    @property
    def best(self) -> Answer | None:
        """The answer of the engine that serves most."""
        serving = [found for found in self.answers.values() if found.serves]
        return max(serving, key=lambda found: (found.users, found.context)) if serving else None

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
    found = _ranked([candidate for candidate in tried if candidate.best is not None], tried)
    if not found:
        _raise_if_never_asked(tried)
    shown = _options_shown(options, found[0] if found else tried[-1], question)
    document = size(model, options=shown)
    solutions = [_solution(candidate, best, question) for candidate in found if (best := candidate.best)]
    solved = SizeDocument(
        rows=document.rows,
        solutions=solutions,
        rejected=[_rejected(candidate, question) for candidate in tried if candidate.best is None],
        assumptions=list(dict.fromkeys([*document.assumptions, *_assumptions(found, solutions)])),
    )
    return solved, shown


def _ranked(found: list[_Candidate], tried: list[_Candidate]) -> list[_Candidate]:
    order = list(dict.fromkeys(candidate.plan.cache_format.name for candidate in tried))

    def key(candidate: _Candidate) -> tuple[int, int, int, int]:
        users, context = (candidate.best.users, candidate.best.context) if candidate.best else (0, 0)
        return candidate.parallel.num_gpus, order.index(candidate.plan.cache_format.name), -users, -context

    return sorted(found, key=key)


def _raise_if_never_asked(tried: list[_Candidate]) -> None:
    """A value that no engine takes on any layout is a mistake, not a lack of memory."""
    if not any(candidate.answers for candidate in tried):
        raise next(iter(tried[0].errors.values()))


def _options_shown(options: SizeOptions, shown: _Candidate, question: Question) -> SizeOptions:
    """The start of the engine that serves most, told as that engine's only where one was asked for."""
    best = shown.best or next(iter(shown.answers.values()), None)
    if best is None:
        return as_asked(replace(shown.plan.options, engine=None), question.users or 1, question.context or 1)
    return replace(best.options, engine=None if options.engine is None else best.start)


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
    """What each engine asked for, else both, would serve at this setting. Raises KvtoolError for one that has no pool
    to fill.
    """
    if options.engine is not None and options.engine.name not in ENGINE_NAMES:
        raise KvtoolError(f"--users plans {' and '.join(ENGINE_NAMES)}: {options.engine.name} allocates what -c says")
    base = replace(options, parallel=layout, kv_cache_dtypes=(dtype,), lengths=None, contexts=(), batch_sizes=(1,))
    plan = replace(make_plan(model, replace(base, engine=None), dtype), options=base)
    answers: dict[str, Answer] = {}
    errors: dict[str, KvtoolError] = {}
    for name in (options.engine.name,) if options.engine else ENGINE_NAMES:
        try:
            answers[name] = answer(plan, name, users=question.users, context=question.context)
        except KvtoolError as error:
            errors[name] = error
    return _Candidate(plan=plan, answers=answers, errors=errors)


def _solution(candidate: _Candidate, best: Answer, question: Question) -> SizeSolution:
    options = best.options
    commands = {name: _command(candidate, found, question) for name, found in candidate.answers.items() if found.serves}
    lines = {name: made.line for name, made in commands.items()}
    reasons = [*_reasons(candidate, question), *(made.reason for made in commands.values() if made.reason)]
    return SizeSolution(
        **_setting(candidate),
        nodes=nodes_of(candidate.parallel),
        users=best.users,
        context=best.context,
        kv_bytes_per_gpu=candidate.plan.cache.bytes_per_gpu(
            tokens=best.context, batch_size=best.users, shared_prefix=options.shared_prefix
        ),
        kv_pool_bytes=best.pool_bytes,
        margin_bytes=best.margin_bytes,
        page_users=page_users(candidate.plan, best),
        vllm_users=_capacity(candidate, "vllm"),
        sglang_users=_capacity(candidate, "sglang"),
        vllm=lines.get("vllm"),
        sglang=lines.get("sglang"),
        reason="; ".join(dict.fromkeys(reasons)) or None,
    )


def _setting(candidate: _Candidate) -> dict[str, Any]:
    """The fields of a SizeSetting."""
    degrees = {name: getattr(candidate.parallel, name) for name in ("num_gpus", "tp", "pp", "dp", "dcp")}
    dtype = candidate.plan.cache_format.name
    return {**degrees, "enable_dp_attention": candidate.parallel.dp_attention, "kv_cache_dtype": dtype}


def _capacity(candidate: _Candidate, name: str) -> float | None:
    found = candidate.answers.get(name)
    return None if found is None or found.refusal is not None else found.capacity


def _command(candidate: _Candidate, found: Answer, question: Question) -> Command:
    return command(
        candidate.plan.model,
        found.start,
        loads=question.loads,
        cache_dtype=candidate.plan.cache_format.name,
        weight_dtype=candidate.plan.options.weight_dtype,
    )


def _rejected(candidate: _Candidate, question: Question) -> SizeRejected:
    return SizeRejected(
        **_setting(candidate),
        reason="; ".join(_reasons(candidate, question)),
    )


def _reasons(candidate: _Candidate, question: Question) -> Iterator[str]:
    """Why the engines do not serve what is asked, of those that do not."""
    yield from (f"{ENGINE_NAMES[name]}: {error}" for name, error in candidate.errors.items())
    for name, found in candidate.answers.items():
        if found.refusal is not None:
            yield f"{ENGINE_NAMES[name]}: {found.refusal}"
        elif not found.serves:
            yield f"{ENGINE_NAMES[name]} holds {found.capacity:,.2f} of {question.users or 1:,} users"


def _assumptions(found: list[_Candidate], solutions: list[SizeSolution]) -> Iterator[str]:
    yield RANKING
    yield (
        "solutions are by the plans that engines would make of the estimated pool, for requests all as long as the "
        "context; page_users counts whole pages of the formula, without what an engine pads or reserves"
    )
    for candidate in found[:1]:
        for answered in candidate.answers.values():
            yield from answered.assumptions if answered.refusal is None else ()
    if any(FIRST_NODE in (line or "") for one in solutions for line in (one.vllm, one.sglang)):
        yield (
            f"a node has {NODE_GPUS} GPUs; the commands are the first node's: put its address for {FIRST_NODE}, and on "
            "the others --node-rank 1, ... (vLLM: with --headless)"
        )
