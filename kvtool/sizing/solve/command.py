"""Starts of vLLM 0.33 and SGLang 0.5.23 for one batch on one layout, and the command lines that make them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from kvtool.catalog.model import Model
from kvtool.results import ENGINE_NAMES
from kvtool.results.size import FIRST_NODE
from kvtool.sizing.dtypes import AUTO, canonical_dtype
from kvtool.sizing.engines.flags import FLAGS
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.parallel import Parallel
from kvtool.units import ceil_div

NODE_GPUS = 8
FLOAT_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # of weights
STATE_NAMES = {AUTO: AUTO, **FLOAT_NAMES}
CACHE_NAMES = {
    "vllm": {"bf16": "bfloat16", "fp16": "float16"}
    | {
        name: name
        for name in (
            *("fp8", "fp8_e5m2", "fp8_per_token_head", "int8_per_token_head", "int4_per_token_head"),
            *("fp8_ds_mla", "nvfp4_ds_mla", "nvfp4", "ultraquant_4bit"),
            *("turboquant_k8v4", "turboquant_4bit_nc", "turboquant_k3v4_nc", "turboquant_3bit_nc"),
        )
    },
    "sglang": {"bf16": "bf16", "fp8": "fp8_e4m3", "fp8_e5m2": "fp8_e5m2", "mxfp8": "mxfp8", "nvfp4": "nvfp4"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command line, or None with the reason why there is none."""

    line: str | None
    reason: str | None = None


def nodes_of(parallel: Parallel) -> int:
    """How many nodes of eight GPUs the layout spans."""
    return ceil_div(parallel.num_gpus, NODE_GPUS)


def command(model: Model, start: EngineOptions, *, loads: str | None, cache_dtype: str, weight_dtype: str) -> Command:
    """What makes this start. `loads` is what an engine loads: an id on the Hub, or a folder; `cache_dtype` kvtool's
    name of the cache's format.
    """
    reason = _refusal(model, start, loads, weight_dtype)
    if loads is None or reason is not None:
        return Command(line=None, reason=reason)
    dtype = _cache_dtype(model, cache_dtype, CACHE_NAMES[start.name])
    if dtype is None:
        return Command(line=None, reason=f"{ENGINE_NAMES[start.name]} has no {cache_dtype} cache for this model")
    state_dtype = STATE_NAMES[canonical_dtype(start.mamba_ssm_cache_dtype)]
    spelled = replace(start, kv_cache_dtype=dtype, mamba_ssm_cache_dtype=state_dtype)
    words = (_vllm if start.name == "vllm" else _sglang)(spelled, loads)
    return Command(line=shlex.join([*words, *_weight_words(model, weight_dtype)]))


def _refusal(model: Model, start: EngineOptions, loads: str | None, weight_dtype: str) -> str | None:
    if loads is None:
        return "no command: an engine needs an id on the Hub or a folder with weights"
    name = canonical_dtype(weight_dtype)
    if weight_dtype != AUTO and name in ("int8", "int4"):
        return f"no command: {weight_dtype} weights need a checkpoint that is stored so"
    if weight_dtype != AUTO and model.quantisation is not None and name != model.quantisation.method:
        return f"no command: {loads} is stored in {model.quantisation.method}, not in {weight_dtype}"
    if start.parallel.dp > 1 and not start.parallel.dp_attention and nodes_of(start.parallel) > 1:
        return f"no command: replicas on several nodes of {NODE_GPUS} GPUs are started one by one"
    if start.num_speculative_tokens:
        return "no command: how an engine is told to draft tokens is not known here"
    return None


def _cache_dtype(model: Model, name: str, known: Mapping[str, str]) -> str | None:
    """The engine's word; its `auto` is the model's own 16 bits."""
    own = canonical_dtype(model.dtype or "bf16")
    return AUTO if name == own and name in ("bf16", "fp16") else known.get(name)


def _vllm(start: EngineOptions, loads: str) -> Iterator[str]:
    parallel = start.parallel
    yield from ("vllm", "serve", loads)
    yield from _layout(parallel)
    yield from _flags(start)
    if nodes_of(parallel) > 1:
        yield from _nodes(parallel, "--master-addr", FIRST_NODE)
    if parallel.ep > 1:
        yield "--enable-expert-parallel"


def _sglang(start: EngineOptions, loads: str) -> Iterator[str]:
    parallel = start.parallel
    yield from ("python", "-m", "sglang.launch_server", "--model-path", loads)
    yield from _layout(parallel)
    yield from _flags(start)
    if parallel.ep > 1:
        yield from ("--expert-parallel-size", str(parallel.ep))
    if nodes_of(parallel) > 1:
        yield from _nodes(parallel, "--dist-init-addr", f"{FIRST_NODE}:20000")


def _flags(start: EngineOptions) -> Iterator[str]:
    for flag in FLAGS:
        yield from flag.words(start.name, getattr(start, flag.field))


def _layout(parallel: Parallel) -> Iterator[str]:
    """Both engines call these the same; replicas of the attention alone are SGLang's."""
    yield from ("--tensor-parallel-size", str(parallel.tp), "--pipeline-parallel-size", str(parallel.pp))
    if parallel.dp > 1:
        yield from ("--attn-dp-size" if parallel.dp_attention else "--data-parallel-size", str(parallel.dp))
    if parallel.dcp > 1:
        yield from ("--decode-context-parallel-size", str(parallel.dcp))


def _nodes(parallel: Parallel, address_flag: str, address: str) -> Iterator[str]:
    yield from ("--nnodes", str(nodes_of(parallel)), "--node-rank", "0", address_flag, address)


def _weight_words(model: Model, weight_dtype: str) -> Iterator[str]:
    name = canonical_dtype(weight_dtype)
    if name in FLOAT_NAMES:
        yield from ("--dtype", FLOAT_NAMES[name])
    elif name == "fp8" and model.quantisation is None:
        yield from ("--quantization", name)
