"""The inverse question: which layout, cache dtype, users or context fit a card. Best first, with commands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kvtool.catalog.model import Model, SharedAttention
from kvtool.errors import KvtoolError
from kvtool.results import SizeDocument, SizeSolution
from kvtool.sizing.dtypes import AUTO, canonical_dtype
from kvtool.sizing.fit import MAX_BATCH_SIZE, largest
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.plan import SizePlan, card_memory, make_plan
from kvtool.sizing.serve import FIRST_NODE, NODE_GPUS, commands, nodes_of
from kvtool.sizing.size import size
from kvtool.units import MAX_LENGTH_TOKENS, ceil_div

GPU_COUNTS = (1, 2, 4, 8, 16)
RANKING = "solutions: fewest GPUs first, then the cache dtypes in the order tried (least lossy first)"


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


@dataclass(frozen=True, slots=True)
class _Tried:
    """One setting and what it holds: no users, or no context, where it does not hold what is asked."""

    options: SizeOptions
    cache_dtype: str
    users: int
    context: int


def solve(model: Model, options: SizeOptions, question: Question) -> tuple[SizeDocument, SizeOptions]:
    """Every setting that fits, and the size of the best; of the last one tried where none does. Also the options of
    that size.

    Raises KvtoolError where a fit cannot be told: without a card or the bytes of the weights, or beyond the model.
    """
    _check(model, options, question)
    tried = [_tried(model, options, question, layout, dtype) for layout, dtype in _settings(model, options, question)]
    found = [one for one in tried if one.users and one.context]
    order = list(dict.fromkeys(one.cache_dtype for one in tried))
    found.sort(key=lambda one: (one.options.parallel.num_gpus, order.index(one.cache_dtype)))
    shown = found[0] if found else tried[-1]
    users, context = shown.users or question.users or 1, shown.context or question.context or options.block_size
    shown_options = _as_asked(shown.options, users, context)
    document = size(model, options=shown_options)
    solved = SizeDocument(
        rows=document.rows,
        solutions=[_solution(model, one, question.served) for one in found],
        assumptions=[*document.assumptions, *_assumptions(found)],
    )
    return solved, shown_options


def _check(model: Model, options: SizeOptions, question: Question) -> None:
    if options.gpu is None:
        raise KvtoolError("--users asks what fits a card: name it with --gpu")
    if options.calibration is not None and question.open_gpus:
        raise KvtoolError("--calibration was measured on one layout: say which with --tp")
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
    for layout in _layouts(model, options, question):
        for dtype in dtypes:
            yield layout, dtype


def _layouts(model: Model, options: SizeOptions, question: Question) -> list[Parallel]:
    """Each number of GPUs, with the widest tensor parallelism that the model takes in a node and stages beyond it.

    Raises KvtoolError where the model takes none of them.
    """
    given = options.parallel
    if not question.open_gpus:
        return [given]
    layouts: list[Parallel] = []
    refusal: KvtoolError | None = None
    for gpus in GPU_COUNTS:
        try:
            layouts.append(_layout(model, options, gpus, question.open_pp))
        except KvtoolError as error:
            refusal = refusal or error
    if not layouts and refusal is not None:
        raise refusal
    return layouts


def _layout(model: Model, options: SizeOptions, gpus: int, open_pp: bool) -> Parallel:
    """The layout of `gpus` GPUs a replica and stage. Raises the KvtoolError of the widest where none is possible."""
    given, refusal = options.parallel, KvtoolError(f"no layout of {model.id} on {gpus} GPUs")
    for tp in (count for count in (8, 4, 2, 1) if count <= gpus):
        pp = gpus // tp if open_pp else given.pp
        if not open_pp and tp != gpus:
            break
        if open_pp and pp > 1 and any(isinstance(layer.cache, SharedAttention) for layer in model.layers):
            break  # vLLM refuses pipeline stages for layers that read another layer's cache
        try:
            layout = replace(given, tp=tp, pp=pp)
            make_plan(model, replace(options, parallel=layout, lengths=None))
        except KvtoolError as error:
            refusal = error
            continue
        return layout
    raise refusal


def _tried(model: Model, options: SizeOptions, question: Question, layout: Parallel, dtype: str) -> _Tried:
    """The most users, or the longest context, that this setting holds: 0 where it does not hold what is asked."""
    base = replace(options, parallel=layout, kv_cache_dtypes=(dtype,), lengths=None, contexts=(), batch_sizes=(1,))
    plan = make_plan(model, base, dtype)
    longest = question.context or options.max_context(model) or MAX_LENGTH_TOKENS

    def holds(users: int, context: int) -> bool:
        return _holds(plan, users, context)

    if question.users is None:
        bounds = [bound for bound in (options.max_num_seqs, options.max_num_batched_tokens) if bound is not None]
        most = min(bounds) * layout.dp if bounds else MAX_BATCH_SIZE
        users, context = largest(lambda n: holds(n, longest), most), longest
    elif question.context is None:
        asked = question.users
        users, context = asked, largest(lambda tokens: holds(asked, tokens), longest)
    else:
        context = question.context
        users = question.users if holds(question.users, context) else 0
    return _Tried(base, plan.cache_format.name, users, context)


def _holds(plan: SizePlan, users: int, context: int) -> bool:
    """Whether the batch fits beside the activations of that many sequences. Raises KvtoolError without weights."""
    _, memory = card_memory(plan.model, _as_asked(plan.options, users, context), plan.weights)
    pool = memory.kv_pool_bytes if memory else None
    if pool is None:
        raise KvtoolError(f"{plan.model.id}: weights {plan.weights.source}; --calibration can give them")
    prefix = min(plan.options.shared_prefix, context)
    return plan.cache.bytes_per_gpu(tokens=context, batch_size=users, shared_prefix=prefix) <= pool


def _as_asked(options: SizeOptions, users: int, context: int) -> SizeOptions:
    """The options of an engine that is started for just these users and this context."""
    sequences = ceil_div(users, options.parallel.dp)
    if options.max_num_seqs is not None and options.max_num_seqs < sequences:
        raise KvtoolError(f"--max-num-seqs {options.max_num_seqs} is less than the {sequences} users of a replica")
    tokens = options.max_num_batched_tokens
    if tokens is not None and tokens < (options.max_num_seqs or sequences):
        raise KvtoolError(
            f"--max-num-batched-tokens {tokens} is less than the {options.max_num_seqs or sequences} sequences of a "
            "step: each takes one token to decode"
        )
    return replace(
        options,
        contexts=(context,),
        batch_sizes=(users,),
        shared_prefix=min(options.shared_prefix, context),
        max_model_len=context,
        max_num_seqs=options.max_num_seqs or sequences,
    )


def _solution(model: Model, one: _Tried, served: str | None) -> SizeSolution:
    options = _as_asked(one.options, one.users, one.context)
    plan = make_plan(model, options, options.kv_cache_dtypes[0])
    parallel, memory = options.parallel, plan.memory
    starts = commands(plan, served=served, context=one.context)
    return SizeSolution(
        num_gpus=parallel.num_gpus,
        nodes=nodes_of(parallel),
        tp=parallel.tp,
        pp=parallel.pp,
        dp=parallel.dp,
        kv_cache_dtype=one.cache_dtype,
        users=one.users,
        context=one.context,
        kv_bytes_per_gpu=plan.cache.bytes_per_gpu(
            tokens=one.context, batch_size=one.users, shared_prefix=options.shared_prefix
        ),
        kv_pool_bytes=(memory.kv_pool_bytes if memory else None) or 0,
        margin_bytes=memory.margin_bytes if memory else 0,
        vllm=starts.vllm,
        sglang=starts.sglang,
        reason=starts.reason,
    )


def _assumptions(found: list[_Tried]) -> Iterator[str]:
    yield RANKING
    yield "solutions count whole pages of the formula; what an engine pads or reserves beyond it is not in them"
    if any(nodes_of(one.options.parallel) > 1 for one in found):
        yield (
            f"a node has {NODE_GPUS} GPUs; the commands are the first node's: put its address for {FIRST_NODE}, and on "
            "the others --node-rank 1, ... (vLLM: with --headless)"
        )
