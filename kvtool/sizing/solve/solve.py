"""The inverse question: which layout, cache dtype, users or context an engine serves. Best first, with commands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kvtool.catalog.model import Model
from kvtool.results import ENGINE_NAMES, SizeDocument, SizeRejected, SizeSolution
from kvtool.results.size import FIRST_NODE
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.plan import SizePlan, make_plan
from kvtool.sizing.size import size
from kvtool.sizing.solve.answer import Answer, answer, as_asked, page_users
from kvtool.sizing.solve.command import NODE_GPUS, Command, command, nodes_of
from kvtool.sizing.solve.settings import OTHER_WEIGHTS, Question, Setting, settings, tuned
from kvtool.system.errors import KvtoolError
from kvtool.units import ceil_div

RANKING = (
    "solutions: fewest GPUs first, then the cache dtypes in the order tried (least lossy first), then the engine's own "
    "share of the card and batch before others, then most users; weights of fewer bits come last"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """One setting, and what each engine makes of it: its answer, or why it has none."""

    setting: Setting
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
    tried = [_try(model, options, question, setting) for setting in settings(model, options, question)]
    tried += list(_other_starts(model, options, question, tried))
    tried += list(_other_weights(model, options, question, tried))
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


def _other_starts(
    model: Model, options: SizeOptions, question: Question, tried: list[_Candidate]
) -> Iterator[_Candidate]:
    """What other starts serve on as many GPUs as the best of `tried` takes, or on fewer."""
    served = {candidate.setting for candidate in tried if candidate.best is not None}
    for setting in _no_larger(tried) if question.open_start else ():
        other = None if setting in served else tuned(setting, options, question.users or 1)
        candidate = None if other is None else _try(model, options, question, other)
        if candidate is not None and candidate.best is not None:
            yield candidate


def _other_weights(
    model: Model, options: SizeOptions, question: Question, tried: list[_Candidate]
) -> Iterator[_Candidate]:
    """What weights of fewer bits serve on fewer GPUs than the best of `tried` takes, or more on as many."""
    if not question.open_weights or model.quantisation is not None:
        return
    is_open = question.users is None or question.context is None
    best = _fewest_gpus(tried)
    near = [one for one in _no_larger(tried) if is_open or best is None or one.parallel.num_gpus < best]
    for weights in OTHER_WEIGHTS:
        yield from _first_served(_try(model, options, question, replace(one, weight_dtype=weights)) for one in near)


def _fewest_gpus(tried: list[_Candidate]) -> int | None:
    return min((one.parallel.num_gpus for one in tried if one.best is not None), default=None)


def _no_larger(tried: list[_Candidate]) -> list[Setting]:
    """The settings as asked on no more GPUs than the best takes."""
    best = _fewest_gpus(tried)
    asked = [one.setting for one in tried if not one.setting.is_tuned]
    return [one for one in asked if best is None or one.parallel.num_gpus <= best]


def _first_served(candidates: Iterator[_Candidate]) -> Iterator[_Candidate]:
    """The first that serves, and nothing of those before it: they are not what was asked for."""
    first = next((candidate for candidate in candidates if candidate.best is not None), None)
    if first is not None:
        yield first


def _ranked(found: list[_Candidate], tried: list[_Candidate]) -> list[_Candidate]:
    order = list(dict.fromkeys(candidate.plan.cache_format.name for candidate in tried))
    weights = ["", *OTHER_WEIGHTS]

    def key(candidate: _Candidate) -> tuple[int, int, int, bool, int, int]:
        users, context = (candidate.best.users, candidate.best.context) if candidate.best else (0, 0)
        setting = candidate.setting
        dtype = order.index(candidate.plan.cache_format.name)
        lighter = weights.index(setting.weight_dtype or "")
        return lighter, setting.parallel.num_gpus, dtype, setting.is_tuned, -users, -context

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


def _try(model: Model, options: SizeOptions, question: Question, setting: Setting) -> _Candidate:
    """What each engine asked for, else both, would serve at this setting. Raises KvtoolError for one that has no pool
    to fill.
    """
    if options.engine is not None and options.engine.name not in ENGINE_NAMES:
        raise KvtoolError(f"--users plans {' and '.join(ENGINE_NAMES)}, not {options.engine.name}")
    base = replace(setting.options(options), lengths=None, contexts=(), batch_sizes=(1,))
    plan = replace(make_plan(model, replace(base, engine=None), setting.kv_cache_dtype), options=base)
    answers: dict[str, Answer] = {}
    errors: dict[str, KvtoolError] = {}
    for name in (options.engine.name,) if options.engine else ENGINE_NAMES:
        try:
            answers[name] = answer(plan, name, users=question.users, context=question.context)
        except KvtoolError as error:
            errors[name] = error
    return _Candidate(setting=setting, plan=plan, answers=answers, errors=errors)


def _solution(candidate: _Candidate, best: Answer, question: Question) -> SizeSolution:
    options = best.options
    commands = {name: _command(candidate, found, question) for name, found in candidate.answers.items() if found.serves}
    lines = {name: made.line for name, made in commands.items()}
    reasons = [*_reasons(candidate, question), *(made.reason for made in commands.values() if made.reason)]
    return SizeSolution(
        **_setting(candidate),
        gpu_memory_utilization=best.start.gpu_memory_utilization,
        max_num_batched_tokens=best.start.max_num_batched_tokens,
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
    return {
        **degrees,
        "enable_dp_attention": candidate.parallel.dp_attention,
        "kv_cache_dtype": dtype,
        "weight_dtype": candidate.plan.weights.format.name,
    }


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
