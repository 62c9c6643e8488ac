"""The command lines that start vLLM and SGLang as a solution says, by the flags of vLLM 0.33 and SGLang 0.5.23."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from kvtool.catalog.model import Model
from kvtool.sizing.dtypes import AUTO, canonical_dtype
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.plan import SizePlan
from kvtool.units import ceil_div

NODE_GPUS = 8
FIRST_NODE = "FIRST_NODE"  # stands for the address of the node that the others connect to
TORCH_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
VLLM_CACHE_DTYPES = {"bf16": "bfloat16", "fp16": "float16"} | {
    name: name
    for name in (
        *("fp8", "fp8_e5m2", "fp8_per_token_head", "int8_per_token_head", "int4_per_token_head"),
        *("fp8_ds_mla", "nvfp4_ds_mla", "nvfp4", "ultraquant_4bit"),
        *("turboquant_k8v4", "turboquant_4bit_nc", "turboquant_k3v4_nc", "turboquant_3bit_nc"),
    )
}
SGLANG_CACHE_DTYPES = {"bf16": "bf16", "fp8": "fp8_e4m3", "fp8_e5m2": "fp8_e5m2", "mxfp8": "mxfp8", "nvfp4": "nvfp4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """A command line for each engine, or None with the reason why it could not serve this."""

    vllm: str | None
    sglang: str | None
    reason: str | None


def nodes_of(parallel: Parallel) -> int:
    """How many nodes of eight GPUs the layout spans."""
    return ceil_div(parallel.num_gpus, NODE_GPUS)


def commands(plan: SizePlan, *, served: str | None, context: int) -> Commands:
    """What starts each engine on the plan's layout. `served` is what an engine loads: an id on the Hub, or a folder."""
    reason = _refusal(plan, served)
    if served is None or reason is not None:
        return Commands(vllm=None, sglang=None, reason=reason)
    name = plan.cache_format.name
    vllm, sglang = (_cache_dtype(plan.model, name, known) for known in (VLLM_CACHE_DTYPES, SGLANG_CACHE_DTYPES))
    missing = [engine for engine, dtype in (("vLLM", vllm), ("SGLang", sglang)) if dtype is None]
    return Commands(
        vllm=None if vllm is None else _vllm(plan, served, context, vllm),
        sglang=None if sglang is None else _sglang(plan, served, context, sglang),
        reason=f"{' and '.join(missing)} has no {name} cache for this model" if missing else None,
    )


def _refusal(plan: SizePlan, served: str | None) -> str | None:
    dtype = plan.options.weight_dtype
    if served is None:
        return "no command: an engine needs an id on the Hub or a folder with weights"
    if dtype != AUTO and canonical_dtype(dtype) in ("int8", "int4"):
        return f"no command: {dtype} weights need a checkpoint that is stored so"
    if plan.options.parallel.dp > 1 and nodes_of(plan.options.parallel) > 1:
        return f"no command: replicas on several nodes of {NODE_GPUS} GPUs are started one by one"
    return None


def _cache_dtype(model: Model, name: str, known: dict[str, str]) -> str | None:
    """The engine's word; its `auto` is the model's own 16 bits."""
    own = canonical_dtype(model.dtype or "bf16")
    return AUTO if name == own and name in ("bf16", "fp16") else known.get(name)


def _vllm(plan: SizePlan, served: str, context: int, cache_dtype: str) -> str:
    options, parallel = plan.options, plan.options.parallel
    flags = {
        "--tensor-parallel-size": parallel.tp,
        "--pipeline-parallel-size": parallel.pp,
        "--max-model-len": context,
        **_batch(plan, "--max-num-seqs", "--max-num-batched-tokens"),
        "--kv-cache-dtype": cache_dtype,
        "--gpu-memory-utilization": f"{options.gpu_memory_utilization:g}",
        **_weights(plan, "--mamba-ssm-cache-dtype"),
    }
    if options.block_size != 16:
        flags["--block-size"] = options.block_size
    if parallel.dp > 1:
        flags["--data-parallel-size"] = parallel.dp
    if parallel.dcp > 1:
        flags["--decode-context-parallel-size"] = parallel.dcp
    if nodes_of(parallel) > 1:
        flags |= {"--nnodes": nodes_of(parallel), "--node-rank": 0, "--master-addr": FIRST_NODE}
    expert_parallel = ["--enable-expert-parallel"] if parallel.ep > 1 else []
    return shlex.join(["vllm", "serve", served, *_words(flags), *expert_parallel])


def _sglang(plan: SizePlan, served: str, context: int, cache_dtype: str) -> str:
    options, parallel = plan.options, plan.options.parallel
    flags = {
        "--model-path": served,
        "--tensor-parallel-size": parallel.tp,
        "--pipeline-parallel-size": parallel.pp,
        "--context-length": context,
        **_batch(plan, "--max-running-requests", "--chunked-prefill-size"),
        "--kv-cache-dtype": cache_dtype,
        "--mem-fraction-static": f"{_static_share(plan):.3f}",
        "--page-size": options.block_size,
        **_weights(plan, "--mamba-ssm-dtype"),
    }
    if parallel.dp > 1:
        flags["--data-parallel-size"] = parallel.dp
    if parallel.dcp > 1:
        flags["--decode-context-parallel-size"] = parallel.dcp
    if parallel.ep > 1:
        flags["--expert-parallel-size"] = parallel.ep
    if nodes_of(parallel) > 1:
        flags |= {"--nnodes": nodes_of(parallel), "--node-rank": 0, "--dist-init-addr": f"{FIRST_NODE}:20000"}
    return shlex.join(["python", "-m", "sglang.launch_server", *_words(flags)])


def _batch(plan: SizePlan, sequences: str, tokens: str) -> dict[str, object]:
    limits = plan.limits
    return {} if limits is None else {sequences: limits.sequences, tokens: limits.tokens}


def _static_share(plan: SizePlan) -> float:
    """SGLang's --mem-fraction-static: weights and cache, of the whole memory; rounded down."""
    memory = plan.memory
    if memory is None or memory.kv_pool_bytes is None:
        raise ValueError("a command needs a card and the bytes of the weights")
    return int(1000 * ((memory.weights_bytes or 0) + memory.kv_pool_bytes) / memory.memory_bytes) / 1000


def _weights(plan: SizePlan, state_flag: str) -> dict[str, object]:
    options, flags = plan.options, dict[str, object]()
    name = canonical_dtype(options.weight_dtype)
    if name in TORCH_DTYPES:
        flags["--dtype"] = TORCH_DTYPES[name]
    elif name == "fp8" and plan.model.quantisation is None:
        flags["--quantization"] = name
    if options.state_dtype != AUTO:
        flags[state_flag] = TORCH_DTYPES[canonical_dtype(options.state_dtype)]
    return flags


def _words(flags: dict[str, object]) -> list[str]:
    return [word for flag, value in flags.items() for word in (flag, str(value))]
