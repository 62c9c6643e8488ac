"""What would make a batch fit, or an engine start: the nearest changes that would do, what each gains and costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from kvtool.catalog.model import Model
from kvtool.results import SizeRow
from kvtool.sizing.engines.llama_cpp import NAMES as LLAMA_CPP
from kvtool.sizing.fit import free_share, largest
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.plan import SizePlan, make_plan
from kvtool.system.errors import KvtoolError
from kvtool.units import format_bytes_short

MOST, FEW = 3, 2  # lines, and fewer than which changes of two flags are tried too
RANKS = (2, 4, 8, 16)
UTILIZATIONS = (0.95, 0.97)
BATCHED_TOKENS = (4096, 2048, 1024, 512)
SEQUENCES = (512, 256, 128, 64, 32, 16, 8)
NARROW = {"fp8": "keys and values in 8 bits"}
WEIGHTS = {
    "fp8": "weights in fp8: a checkpoint stored so, or vLLM's --quantization fp8",
    "int4": "weights in 4 bits: a checkpoint of AWQ or GPTQ",
}
_WEIGHT_BITS, _HARM = {"fp8": 8, "int8": 8, "int4": 4}, {"fp8": 2.0, "int8": 2.0, "int4": 3.0}
GGUF_NARROW = {"q8_0": NARROW["fp8"]}
GGUF_WEIGHTS = {"int8": "a GGUF file in 8 bits, as Q8_0", "int4": "a GGUF file in about 4 bits, as Q4_K_M"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One way of asking again: `flags` to be typed, what that costs in words, and the question itself. `harm` orders
    changes: 0 takes nothing away, 1 halves the bits of the cache, and what keeps a part of a request or a batch has the
    inverse of that part.
    """

    flags: str
    cost: str
    harm: float
    options: SizeOptions
    dtype: str
    context: int
    batch_size: int

    def row(self, model: Model) -> SizeRow | None:
        """What it comes to; None for what the model cannot take."""
        try:
            asked = replace(self.options, contexts=(self.context,), places=None, lengths=None)
            return make_plan(model, asked, self.dtype).row(self.context, self.batch_size)
        except KvtoolError:
            return None


def remedies(model: Model, options: SizeOptions, rows: Sequence[SizeRow]) -> list[list[str]]:
    """For each row at most three of `--tp 2: gains 9.5 GiB; a second card`, those that take least away first.

    None where the row fits and its engine starts, where that is not known, and where nothing tried is enough.
    """
    return [[] if _is_served(row) else _remedies(model, options, row) for row in rows]


def _is_served(row: SizeRow) -> bool:
    return row.fit.fits is not False and row.engine.refusal is None


def _remedies(model: Model, options: SizeOptions, row: SizeRow) -> list[str]:
    asked = Change(
        flags="",
        cost="",
        harm=0,
        options=options,
        dtype=row.inputs.kv_cache_dtype,
        context=row.inputs.context,
        batch_size=row.inputs.batch_size,
    )
    plan = make_plan(model, replace(options, engine=None, places=None, lengths=None), asked.dtype)
    found = list(_enough(model, row, _single(model, row, plan, asked)))
    if len(found) < FEW:
        joined = (change for change in _pairs(row, plan, asked) if not found or "--tp" not in change.flags)
        found += islice(_enough(model, row, joined), 1)
    nearest = sorted(found, key=lambda one: one[0].harm)[:MOST]
    return [_told(row, change, changed) for change, changed in nearest]


def _enough(model: Model, row: SizeRow, changes: Iterator[Change]) -> Iterator[tuple[Change, SizeRow]]:
    """Of each flag the mildest change that does, its margin not called upon."""
    done: set[str] = set()
    for change in changes:
        flag = change.flags.split(" ")[0]
        if flag in done:
            continue
        changed = change.row(model)
        if changed is not None and _is_enough(changed):
            done.add(flag)
            yield change, changed


def _is_enough(row: SizeRow) -> bool:
    """Whether it fits and starts by the estimate itself: vLLM's plan is of a larger pool where only that would."""
    pool, estimated = row.engine.pool_bytes, row.fit.kv_pool_bytes
    surely = row.engine.name != "vllm" or pool is None or estimated is None or pool <= estimated
    return surely and row.engine.refusal is None and not row.fit.missing_bytes


def _told(row: SizeRow, change: Change, changed: SizeRow) -> str:
    before, after = _spare_bytes(row, row), _spare_bytes(changed, row)
    gain = "" if before is None or after is None or after <= before else f"gains {format_bytes_short(after - before)}; "
    return f"{change.flags}: {gain}{change.cost}"


def _spare_bytes(row: SizeRow, refused: SizeRow) -> int | None:
    """What a GPU has left beside the batch, or the engine beside its longest request where that was `refused`."""
    if refused.engine.refusal is not None:
        needed = row.engine.bytes_needed
        worst = max(needed, default=None) if isinstance(needed, list) else needed
        return None if worst is None or row.engine.pool_bytes is None else row.engine.pool_bytes - worst
    if row.fit.kv_pool_bytes is None:
        return None
    return row.fit.kv_pool_bytes - row.kv.bytes_per_gpu if not row.fit.missing_bytes else -row.fit.missing_bytes


def _single(model: Model, row: SizeRow, plan: SizePlan, asked: Change) -> Iterator[Change]:
    """Every change of one flag; none of what makes a pool that was measured or given."""
    given = "kv_pool_bytes" in (row.fit.measured or ())
    yield from _narrower(row, asked)
    yield from _shorter(model, row, asked)
    yield from _fewer(row, asked)
    if given:
        return
    if row.engine.name in LLAMA_CPP:
        yield from _dealt_out(model, row, asked)
        yield from _lighter(plan, asked, GGUF_WEIGHTS)
        return
    yield from _settings(plan, asked)
    yield from _lighter(plan, asked)
    if asked.options.calibration is None:  # what was measured on some ranks says nothing of others
        yield from _wider(row, asked)


def _narrower(row: SizeRow, asked: Change) -> Iterator[Change]:
    for dtype, cost in (GGUF_NARROW if row.engine.name in LLAMA_CPP else NARROW).items():
        if row.inputs.kv_cache_dtype != dtype:
            yield replace(asked, flags=f"--kv-cache-dtype {dtype}", cost=cost, harm=1, dtype=dtype)


def _shorter(model: Model, row: SizeRow, asked: Change) -> Iterator[Change]:
    """The longest context at this batch size; of an engine that refuses, the longest sequence that it starts with."""
    tokens = row.fit.max_context or 0
    if row.engine.refusal is not None:
        tokens = row.engine.estimated_max_model_len or _longest(model, row, asked)
    if tokens:
        yield _at_most(asked, tokens) if row.engine.refusal else _of_context(asked, tokens)


def _longest(model: Model, row: SizeRow, asked: Change) -> int:
    """The longest sequence that an engine starts with, where it does not say it itself."""

    def starts(tokens: int) -> bool:
        changed = _at_most(asked, tokens).row(model)
        return changed is not None and _is_enough(changed)

    return largest(starts, row.engine.max_model_len or asked.options.max_context(model) or asked.context)


def _of_context(asked: Change, tokens: int) -> Change:
    kept = tokens / asked.context
    cost = f"requests of {tokens:,} tokens, {kept:.0%} of what was asked"
    return replace(asked, flags=f"--context {tokens}", cost=cost, harm=1 / kept, context=tokens)


def _at_most(asked: Change, tokens: int) -> Change:
    """An engine that takes no longer sequences."""
    options, context = asked.options, min(asked.context, tokens)
    engine = None if options.engine is None else replace(options.engine, max_model_len=tokens, auto_fit=False)
    shorter = "" if context == asked.context else f" --context {context}"
    return replace(
        asked,
        flags=f"--max-model-len {tokens}{shorter}",
        cost=f"no request longer than {tokens:,} tokens",
        harm=1.5 if not shorter else asked.context / context,
        context=context,
        options=replace(
            options,
            contexts=(context,),
            shared_prefix=min(options.shared_prefix, context),
            max_model_len=tokens,
            engine=engine,
        ),
    )


def _fewer(row: SizeRow, asked: Change) -> Iterator[Change]:
    """The largest batch at this context."""
    count = row.fit.max_batch_size
    if count and row.engine.refusal is None:
        cost = f"{count:,} of {asked.batch_size:,} sequences at a time"
        yield replace(asked, flags=f"--batch-size {count}", cost=cost, harm=asked.batch_size / count, batch_size=count)


def _settings(plan: SizePlan, asked: Change) -> Iterator[Change]:
    """vLLM's share of the card, and what it profiles its start with."""
    options, memory, limits = asked.options, plan.memory, plan.limits
    if memory is None or limits is None or (options.engine is not None and options.engine.name != "vllm"):
        return
    if options.gpu is not None and memory.usable_bytes == options.gpu.free_bytes < memory.memory_bytes:
        share = free_share(options.gpu)
        yield replace(
            asked,
            flags=f"--gpu-memory-utilization {share:g}",
            cost=f"{format_bytes_short(options.gpu.free_bytes)} of the card are free",
            options=options.started_with(gpu_memory_utilization=share),
        )
    for share in UTILIZATIONS:
        if share * memory.memory_bytes > memory.usable_bytes:
            left = format_bytes_short(round((1 - share) * memory.memory_bytes))
            changed = options.started_with(gpu_memory_utilization=share)
            cost = f"leaves {left} of a card to all else"
            yield replace(asked, flags=f"--gpu-memory-utilization {share:g}", cost=cost, options=changed)
    for count in BATCHED_TOKENS:
        if max(limits.sequences, asked.batch_size) <= count < limits.tokens:
            changed, cost = (
                options.started_with(max_num_batched_tokens=count),
                f"prompts run {count:,} tokens at a time",
            )
            yield replace(asked, flags=f"--max-num-batched-tokens {count}", cost=cost, harm=0.5, options=changed)
    for count in SEQUENCES:
        if asked.batch_size <= count < limits.sequences:
            changed, cost = options.started_with(max_num_seqs=count), f"at most {count:,} sequences run at once"
            yield replace(asked, flags=f"--max-num-seqs {count}", cost=cost, harm=0.5, options=changed)


def _dealt_out(model: Model, row: SizeRow, asked: Change) -> Iterator[Change]:
    """llama.cpp's layers on the CPU in part, or on more cards."""
    engine, count = asked.options.engine, model.num_layers + 1  # the output too
    if engine is None or row.engine.refusal is not None:
        return

    def with_layers(layers: int) -> Change:
        cost = f"{count - layers} of {count} layers on the CPU"
        options = replace(asked.options, engine=replace(engine, n_gpu_layers=layers))
        harm = 2.5 + count / max(layers, 1)
        return replace(asked, flags=f"--n-gpu-layers {layers}", cost=cost, harm=harm, options=options)

    def fits(layers: int) -> bool:
        changed = with_layers(layers).row(model)
        return changed is not None and _is_enough(changed)

    if layers := largest(fits, (count if engine.n_gpu_layers is None else engine.n_gpu_layers) - 1):
        yield with_layers(layers)
    for cards in (ranks for ranks in RANKS if ranks > len(engine.tensor_split.split(","))):
        shares = ",".join("1" * cards)
        cost = "a second card" if cards == RANKS[0] else f"{cards} cards"
        options = replace(asked.options, engine=replace(engine, tensor_split=shares))
        yield replace(asked, flags=f"--tensor-split {shares}", cost=cost, harm=0.5 + cards, options=options)


def _lighter(plan: SizePlan, asked: Change, formats: Mapping[str, str] = WEIGHTS) -> Iterator[Change]:
    """Weights of fewer bits than they are stored in."""
    for dtype, cost in formats.items():
        if plan.weights.stored_bytes is not None and plan.weights.format.bits > _WEIGHT_BITS[dtype] + 1:
            options = replace(asked.options, weight_dtype=dtype)
            yield replace(asked, flags=f"--weight-dtype {dtype}", cost=cost, harm=_HARM[dtype], options=options)


def _wider(row: SizeRow, asked: Change) -> Iterator[Change]:
    """More of the usual numbers of ranks."""
    for tp in (ranks for ranks in RANKS if ranks > row.inputs.tp):
        parallel = replace(asked.options.parallel, tp=tp)
        more = parallel.num_gpus
        cost = "a second card" if more == 2 else f"{more} cards in place of {row.inputs.num_gpus}"
        options = replace(asked.options, parallel=parallel)
        yield replace(asked, flags=f"--tp {tp}", cost=cost, harm=0.5 + tp / row.inputs.tp, options=options)


def _pairs(row: SizeRow, plan: SizePlan, asked: Change) -> Iterator[Change]:
    """Formats and ranks together, those with the fewest cards first."""
    if "kv_pool_bytes" in (row.fit.measured or ()) or row.engine.name in LLAMA_CPP:
        return
    narrow, lighter = list(_narrower(row, asked)), list(_lighter(plan, asked))
    both = [_joined(first, second) for first in lighter for second in narrow]
    yield from both
    if asked.options.calibration is None:
        for wider in _wider(row, asked):
            yield from (_joined(wider, one) for one in (*narrow, *lighter, *both))


def _joined(first: Change, second: Change) -> Change:
    """Both changes, of which the second changes no layout."""
    dtype = second.dtype if first.dtype != second.dtype else first.dtype
    weight_dtype = second.options.weight_dtype
    if weight_dtype == "auto":
        weight_dtype = first.options.weight_dtype
    return replace(
        first,
        flags=f"{first.flags} {second.flags}",
        cost=f"{first.cost}; {second.cost}",
        harm=first.harm + second.harm,
        dtype=dtype,
        options=replace(first.options, weight_dtype=weight_dtype),
    )
