"""Why an engine did not start, in kvtool's words: how much was missing, and which flags help."""

from __future__ import annotations

from kvtool.results import VerifyRefusal
from kvtool.units import format_bytes, format_length
from kvtool.verify.budget import Estimate, kv_pool
from kvtool.verify.facts import LogFacts
from kvtool.verify.inputs import Started


def refusal(facts: LogFacts, start: Started, estimated: Estimate | None) -> VerifyRefusal | None:
    """The log's refusal explained; None where the engine started."""
    if facts.refusal is None:
        return None
    explain = {
        "one_request": _one_request,
        "no_kv_memory": _no_kv_memory,
        "free_memory": _free_memory,
        "load_oom": _load_oom,
        "mamba_blocks": _mamba_blocks,
        "oom": _oom,
        "unbalanced": _free_memory,
        "profiling": _profiling,
        "layout": _layout,
        "gpus": _gpus,
        "too_long": _too_long,
        "failed": _failed,
    }[facts.refusal.kind]
    return VerifyRefusal(kind=facts.refusal.kind, line=facts.refusal.line, explanation=explain(facts, start, estimated))


def _profiling(facts: LogFacts, start: Started, estimated: Estimate | None) -> str:
    return (
        "Another process gave memory of this GPU back while vLLM measured it: start when nothing else starts or ends "
        "there, or give the cache its size with --kv-cache-memory-bytes."
    )


def _layout(facts: LogFacts, start: Started, estimated: Estimate | None) -> str:
    asked, heads = start.options.parallel.tp, facts.last("heads")
    count = round(heads.value) if heads is not None else 0
    fitting = [str(tp) for tp in range(2, 2 * asked + 1) if count and count % tp == 0]
    text = f"{count or 'The'} attention heads cannot be split over {asked} ranks: start with --tensor-parallel-size"
    return f"{text} {' or '.join(fitting) or 1}, or split the layers instead (--pipeline-parallel-size {asked})."


def _gpus(facts: LogFacts, start: Started, estimated: Estimate | None) -> str:
    world, gpus = facts.last("world"), facts.last("gpus")
    if world is None or gpus is None:
        return "There are fewer GPUs than --tensor-parallel-size x --pipeline-parallel-size."
    return (
        f"{world.value:.0f} ranks were asked for and {gpus.value:.0f} GPUs are seen: lower --tensor-parallel-size or "
        "--pipeline-parallel-size, or look at CUDA_VISIBLE_DEVICES."
    )


def _too_long(facts: LogFacts, start: Started, estimated: Estimate | None) -> str:
    longest = start.model.max_position_embeddings
    most = f"--max-model-len {longest} or less" if longest else "a smaller --max-model-len"
    return f"The model was made for fewer tokens: start with {most}, or with rope scaling in --hf-overrides."


def _failed(facts: LogFacts, start: Started, estimated: Estimate | None) -> str:
    return "The log says that the engine did not start, but no line of it that kvtool knows says why."


def _one_request(facts: LogFacts, start: Started, estimated: Estimate | None) -> str:
    needed, pool, longest = facts.last("one_request"), kv_pool(facts), facts.last("estimated_max_len")
    text = "One request of max_model_len does not fit the pool"
    if needed is not None and pool is not None:
        text += f": {format_bytes(round(needed.value - pool.value))} are missing"
    text += f". --max-model-len {longest.value:.0f} fits" if longest else ". A smaller --max-model-len fits"
    return f"{text}; so may --kv-cache-dtype fp8, more --tensor-parallel-size, or --gpu-memory-utilization."


def _no_kv_memory(facts: LogFacts, start: Started, estimated: Estimate | None) -> str:
    flag = "--mem-fraction-static" if facts.engine == "sglang" else "--gpu-memory-utilization"
    graphs = facts.largest("graphs_estimate")
    if (
        graphs is not None
        and estimated is not None
        and estimated.weights_bytes
        and graphs.value > estimated.weights_bytes
    ):
        return (
            f"Nothing is left for the cache: vLLM puts CUDA graphs at {format_bytes(round(graphs.value))}, more than "
            "the weights. VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS=0 leaves them out; --max-cudagraph-capture-size "
            "shrinks them."
        )
    text = "Nothing is left for the cache"
    if estimated is not None and estimated.memory is not None and estimated.memory.kv_pool_bytes is not None:
        memory = estimated.memory
        text += (
            f": of {format_bytes(memory.usable_bytes)} usable, weights take {format_bytes(memory.weights_bytes or 0)} "
            f"and activations about {format_bytes(memory.activation_bytes)}"
        )
    return f"{text}. Raise {flag}, or split the weights over more GPUs (tensor parallel), or quantise them."


def _free_memory(facts: LogFacts, start: Started, estimated: Estimate | None) -> str:
    free, total = facts.last("free_memory"), facts.last("total_memory")
    if free is None or total is None or total.high <= 0:
        flag = "--mem-fraction-static" if facts.engine == "sglang" else "--gpu-memory-utilization"
        return f"Another process holds memory of this GPU: end it, or lower {flag}."
    held = format_bytes(round(total.value - free.value))
    fits = int(100 * free.low / total.high) / 100
    return (
        f"Another process holds {held} of this GPU: end it, or start with --gpu-memory-utilization {fits:.2f} or less."
    )


def _load_oom(facts: LogFacts, start: Started, estimated: Estimate | None) -> str:
    text = "The weights do not fit one GPU"
    if estimated is not None and estimated.weights_bytes is not None:
        text = f"The weights take {format_bytes(estimated.weights_bytes)} on each GPU, and did not fit"
        card = facts.last("total_memory")
        text += f" {format_bytes(round(card.value))}" if card else ""
    return f"{text}: more --tensor-parallel-size or --pipeline-parallel-size, or a quantised checkpoint."


def _mamba_blocks(facts: LogFacts, start: Started, estimated: Estimate | None) -> str:
    if facts.engine == "sglang":
        return "No state slot fits: lower --max-running-requests, or raise --mem-fraction-static."
    blocks = facts.smallest("num_blocks")
    most = f"{blocks.value:.0f}" if blocks else "the number of blocks"
    return f"Each sequence needs a block for its recurrent state: start with --max-num-seqs {most} or less."


def _oom(facts: LogFacts, start: Started, estimated: Estimate | None) -> str:
    others = sum(figure.value for figure in dict.fromkeys(facts.of("other_process")))
    if others:
        held = format_bytes(round(others))
        return f"Other processes hold {held} of this GPU: end them, or lower --gpu-memory-utilization."
    pool = kv_pool(facts)
    if pool is None and not facts.of("weights"):
        return _load_oom(facts, start, estimated)
    tokens = start.options.max_num_batched_tokens
    if facts.engine == "sglang":
        return "Memory ran out beside the pools: lower --mem-fraction-static, or --chunked-prefill-size."
    step = f"--max-num-batched-tokens{f' ({format_length(tokens)} now)' if tokens else ''}"
    return f"Memory ran out beside the cache: lower --gpu-memory-utilization, {step} or --max-num-seqs."
