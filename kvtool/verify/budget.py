"""The memory of one GPU: what the log measured of it beside what `kvtool size` estimates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import msgspec

from kvtool.catalog.gpus import Gpu
from kvtool.catalog.headers import CheckpointHeader
from kvtool.results import VerifyRow
from kvtool.sizing.drafts import loaded_weights
from kvtool.sizing.dtypes import AUTO
from kvtool.sizing.engines import vllm
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.fit import LARGE_CARD_LIMITS, BatchLimits, Budget, batch_limits, budget
from kvtool.sizing.weights import Weights, weigh
from kvtool.units import format_bytes
from kvtool.verify.facts import Figure, LogFacts
from kvtool.verify.inputs import Started
from kvtool.verify.rows import BYTES, Predicted, estimate_row, exact_row

FEWER = 0.8  # logged weights below this part of the estimate are those of another, quantised checkpoint
NEAR = 0.05  # estimates within this part of the log are called near


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What is predicted of one GPU; `memory` and `limits` are None where neither --gpu nor the log says which card.

    `weights_bytes` is None where nothing says how many bits the log's checkpoint stores. `as_logged` says that the
    pool follows from the weights of the log, which are far fewer than those of the model named.
    """

    weights: Weights
    weights_bytes: int | None
    memory: Budget | None
    limits: BatchLimits | None
    graphs_bytes: int
    as_logged: bool = False


def estimate(facts: LogFacts, started: Started, checkpoint: CheckpointHeader | None) -> Estimate:
    """The budget of the start on its card. Raises KvtoolError for weights of a dtype that there is none of."""
    options = started.options
    weights = _weighed(facts, started, checkpoint)
    if facts.engine in ("vllm", "sglang"):
        weights = loaded_weights(weights, started.draft)
    untold = checkpoint is None and _bits_untold(facts, started)
    gpu = card(facts, options.gpu)
    weights_bytes = None if untold else _loaded_bytes(weights, gpu, options)
    logged = facts.largest("weights") or facts.largest("consumed")
    as_logged = logged is not None and (weights_bytes is None or logged.value < FEWER * weights_bytes)
    memory = limits = None
    vllm_options = options if facts.engine == "vllm" else replace(options, name="vllm", version=None)
    rules = vllm.rules_at(vllm_options.version)
    if gpu is not None:
        limits = batch_limits(
            gpu,
            tokens=options.max_num_batched_tokens,
            sequences=options.max_num_seqs,
            max_model_len=options.max_model_len,
            huge_cards=rules.huge_cards,
        )
        longest = options.max_model_len or started.model.max_position_embeddings or limits.tokens
        memory = budget(
            gpu,
            vllm.estimates(weights, gpu, vllm_options, limits, max_model_len=longest),
            weights_bytes=round(logged.value) if logged is not None and as_logged else weights_bytes,
            utilization=options.gpu_memory_utilization or rules.gpu_memory_utilization,
        )
    step = limits or BatchLimits(
        tokens=options.max_num_batched_tokens or LARGE_CARD_LIMITS.tokens,
        sequences=options.max_num_seqs or LARGE_CARD_LIMITS.sequences,
    )
    second_runner = facts.engine == "vllm" and rules.second_runner.runs(started.model)
    graphs = _profiled(facts, second_runner=second_runner) or vllm.captured(
        step, drafted=options.num_speculative_tokens, second_runner=second_runner
    )
    eager = facts.flags.get("enforce_eager") == "True"
    return Estimate(
        weights=weights,
        weights_bytes=weights_bytes,
        memory=memory,
        limits=limits,
        graphs_bytes=0 if eager else vllm.graphs_bytes(started.model, options.parallel, graphs),
        as_logged=as_logged,
    )


def _weighed(facts: LogFacts, started: Started, checkpoint: CheckpointHeader | None) -> Weights:
    """From the headers given, else by the size of the checkpoint that the log tells, else as its config or name has."""
    told = facts.first("checkpoint")
    if checkpoint is not None or told is None or started.weight_dtype != AUTO:
        return weigh(started.target, started.weight_dtype, checkpoint=checkpoint)
    weights = weigh(replace(started.target, weights_bytes=round(told.value)), started.weight_dtype)
    return replace(weights, source=f"{format_bytes(round(told.value))}, the size of the checkpoint in the log")


def _profiled(facts: LogFacts, *, second_runner: bool) -> vllm.Graphs | None:
    """The graphs that the log says were profiled; None where it does not."""
    mixed, decodes = facts.last("mixed_graphs"), facts.last("decode_graphs")
    if mixed is None and decodes is None:
        return None
    count = [0 if figure is None else round(figure.value) for figure in (mixed, decodes)]
    return vllm.Graphs(mixed=count[0], decodes=count[1], second_runner=second_runner)


def _loaded_bytes(weights: Weights, gpu: Gpu | None, options: EngineOptions) -> int | None:
    """Of the fullest rank, with what vLLM counts to them."""
    weights_bytes = weights.bytes_per_gpu(options.parallel)
    if weights_bytes is None or options.name != "vllm":
        return weights_bytes
    capability = None if gpu is None else vllm.capability_of(gpu)
    beside = vllm.beside_weights(
        weights, options.parallel, capability, vllm.rules_of(options), eager=not options.cuda_graphs
    )
    return weights_bytes + beside.bytes


def _bits_untold(facts: LogFacts, started: Started) -> bool:
    """Whether the log's checkpoint is quantised in a way that neither the model named nor the log says more of."""
    told = facts.flags.get("quantization", "").strip("'\"")
    return told not in ("", "None") and started.model.quantisation is None and started.weight_dtype == AUTO


def card(facts: LogFacts, named: Gpu | None) -> Gpu | None:
    """The card named, with the memory that the log says it has; one without a name where only that is known."""
    total = facts.last("total_memory")
    if total is None:
        return named
    memory_bytes = round(total.value)
    if named is not None:
        return msgspec.structs.replace(
            named, memory_bytes=memory_bytes, memory_margin_bytes=0, memory_assumed=False, kept_bytes=0
        )
    return Gpu(
        name="the log's card", vendor="", arch=None, memory_bytes=memory_bytes, source="the log", confidence="measured"
    )


def vllm_rows(facts: LogFacts, estimated: Estimate) -> Iterator[VerifyRow]:
    """Terms of vLLM's budget: usable = weights + what is not torch's + activations + graphs + the cache's pool."""
    memory = estimated.memory
    if (requested := facts.last("requested_memory")) is not None:
        yield exact_row("usable memory", BYTES, requested, _usable(facts), _usable_text(facts))
    yield weights_row(facts, estimated)
    graphs_inside = facts.last("consumed") is not None and estimated.graphs_bytes > 0
    inside = estimated.graphs_bytes if graphs_inside else 0
    activation = None if memory is None else memory.activation_bytes + inside
    if (peak := activation_peak(facts)) is not None:
        yield estimate_row("peak activation", BYTES, peak, activation, _activation_text(estimated, graphs_inside))
    if (other := outside_torch(facts)) is not None:
        text = "kernels and workspaces; buffers of an all-reduce take more"
        runtime = memory.estimates.runtime.bytes if memory is not None and memory.estimates is not None else None
        yield estimate_row("outside torch", BYTES, other, runtime, text)
    yield from _graphs_rows(facts, None if graphs_inside else estimated.graphs_bytes, estimated.graphs_bytes)


def _graphs_rows(facts: LogFacts, taken: int | None, estimate: int) -> Iterator[VerifyRow]:
    """vLLM's estimate where the log has one, else what capturing took, which `taken` is predicted to be."""
    told, took = facts.last("graphs_estimate"), facts.last("graphs")
    if told is not None and told.value > 0:
        text = "what vLLM estimates for the batch sizes captured (--max-cudagraph-capture-size)"
        yield estimate_row("CUDA graphs", BYTES, told, estimate, text)
    elif took is not None:
        text = "grows with the batch sizes captured (--max-cudagraph-capture-size)"
        inside = f"what they took; the estimate of {format_bytes(estimate)} is in the peak activation"
        yield estimate_row("CUDA graphs", BYTES, took, taken, inside if taken is None else text)


def weights_row(facts: LogFacts, estimated: Estimate) -> VerifyRow:
    """Weights of the fullest rank."""
    logged = facts.first("weights") if facts.engine == "sglang" else facts.largest("weights")
    return estimate_row("weights", BYTES, logged, estimated.weights_bytes, _weights_text(facts, estimated, logged))


def pool_row(facts: LogFacts, estimated: Estimate, rows: list[VerifyRow]) -> VerifyRow:
    """What is left for the cache on the rank with the least, and which term its estimate differs by."""
    logged, memory = kv_pool(facts), estimated.memory
    predicted = None if memory is None else memory.kv_pool_bytes
    apart = [row for row in rows if row.verdict == "estimate" and row.difference]
    text = ""
    if predicted is None:
        text = "name the card with --gpu for an estimate" if memory is None else "the weights are not known"
    elif estimated.as_logged:
        text = "with the weights as logged"
    elif logged is not None and apart:
        largest = max(apart, key=lambda row: abs(row.difference or 0))
        if abs(largest.difference or 0) > abs(predicted - logged.value) / 2:
            text = f"most of it is {largest.term}: {_signed(largest.difference or 0)}"
    return estimate_row("KV cache pool", BYTES, logged, predicted, text)


def kv_pool(facts: LogFacts) -> Figure | None:
    """The pool of the rank with the least memory, to the byte where the log has it so."""
    figures = facts.of("kv_pool")
    to_the_byte = [figure for figure in figures if figure.exact]
    return min(to_the_byte or figures, key=lambda figure: figure.value, default=None)


def activation_peak(facts: LogFacts) -> Figure | None:
    """Torch's peak beyond the weights; vLLM before 0.7 logs it with them."""
    logged, peak, weights = facts.largest("activation"), facts.largest("peak_torch"), facts.largest("weights")
    return logged if logged is not None or peak is None or weights is None else _less(peak, weights)


def outside_torch(facts: LogFacts) -> Figure | None:
    """What is neither weights nor torch's: logged as such, or in what a GPU lost beyond its weights."""
    logged, consumed, weights = facts.largest("non_torch"), facts.largest("consumed"), facts.largest("weights")
    if logged is not None or consumed is None or weights is None:
        return logged
    return _less(consumed, weights)


def _less(whole: Figure, part: Figure) -> Figure:
    return Figure(value=whole.value - part.value, low=whole.low - part.high, high=whole.high - part.low)


def _usable(facts: LogFacts) -> Predicted | None:
    total, text = facts.last("total_memory"), facts.flags.get("gpu_memory_utilization")
    if total is None or text is None:
        return None
    part = float(text)
    return Predicted(value=total.value * part, low=total.low * part, high=total.high * part)


def _usable_text(facts: LogFacts) -> str:
    total, free = facts.last("total_memory"), facts.last("free_memory")
    if total is None:
        return ""
    text = f"{facts.flags.get('gpu_memory_utilization')} of {format_bytes(round(total.value))}"
    return f"{text}, of which {format_bytes(round(free.value))} was free" if free else text


def _weights_text(facts: LogFacts, estimated: Estimate, logged: Figure | None) -> str:
    if estimated.weights_bytes is None:
        if (told := facts.flags.get("quantization")) and estimated.weights.stored_bytes is not None:
            return f"the log's checkpoint is {told}, which stores fewer bits: a folder as MODEL says how many"
        return estimated.weights.source
    if logged is None or abs(estimated.weights_bytes - logged.value) <= NEAR * logged.value:
        return estimated.weights.source
    if logged.value < estimated.weights_bytes:
        return f"{estimated.weights.source}; the log's checkpoint stores fewer bits: a folder as MODEL says how many"
    extra = "buffers, vision towers, draft layers or copies for kernels"
    return f"{estimated.weights.source}; the engine keeps more ({extra})"


def _activation_text(estimated: Estimate, graphs_inside: bool) -> str:
    if estimated.limits is None:
        return "name the card with --gpu for an estimate"
    text = f"for {estimated.limits.tokens:,} batched tokens (--max-num-batched-tokens)"
    return f"{text}, with vLLM's estimate of CUDA graphs" if graphs_inside else text


def _signed(byte_count: float) -> str:
    return f"{'+' if byte_count > 0 else '-'}{format_bytes(abs(round(byte_count)))}"
