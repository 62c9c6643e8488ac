"""One start of vLLM as its own code plans it, for a model given by its layers: for tools/random_plans.py.

Nothing of kvtool is used. Settings stand in for vLLM's configs; the specs come from its layers' get_kv_cache_spec, the
block size from Platform.update_block_size_for_backend, states from mamba_utils, all else from v1/core/kv_cache_utils.
"""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import replace
from inspect import signature
from types import SimpleNamespace as Space
from typing import Any
from unittest.mock import patch

import torch

os.environ.setdefault("VLLM_KV_CACHE_LAYOUT", "NHD")  # the default, for which releases before 0.30 ask a config
import vllm
from vllm.config.speculative import SpeculativeConfig
from vllm.config.vllm import VllmConfig
from vllm.distributed.utils import get_pp_indices
from vllm.model_executor.layers.attention.attention import Attention, AttentionType
from vllm.model_executor.layers.attention.chunked_local_attention import ChunkedLocalAttention
from vllm.model_executor.layers.attention.mla_attention import MLAAttention
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.layers.mamba.mamba_mixer2 import MambaMixer2
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateDtypeCalculator as Dtypes
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateShapeCalculator as Shapes
from vllm.model_executor.models.deepseek_v2 import DeepseekV32IndexerCache
from vllm.platforms.interface import Platform
from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype
from vllm.v1.attention.backends.mla.flashmla_sparse import FlashMLASparseBackend
from vllm.v1.attention.backends.mla.indexer import DeepseekV32IndexerBackend
from vllm.v1.attention.backends.mla.triton_mla import TritonMLABackend
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend
from vllm.v1.core import kv_cache_utils as utils
from vllm.v1.worker import utils as worker

VERSION = ".".join(vllm.__version__.split(".")[:2])
STATES = ("mamba1", "mamba2", "gated_delta_net", "kda", "short_conv")


def customize(backend: Any, spec: Any) -> Any:
    """The spec as its kernels want it; before 0.32 the kernels say it all, and before them the spec does."""
    if hasattr(worker, "customize_attention_spec"):
        return worker.customize_attention_spec(backend, spec)
    if hasattr(backend, "indexes_kv_by_block_stride") and hasattr(spec, "indexes_kv_by_block_stride"):
        spec = replace(spec, indexes_kv_by_block_stride=backend.indexes_kv_by_block_stride())
    return backend.customize_spec(spec) if hasattr(backend, "customize_spec") else spec


def _layout() -> Any:
    from vllm.v1.kv_cache_layout import KVCacheLayout

    return KVCacheLayout.LBNHC


class Settings(Space):
    """What vLLM's code reads of a VllmConfig; what follows from it is VllmConfig's own."""


for name in ("concurrent_batches", "in_flight_tokens"):
    setattr(Settings, f"max_{name}", getattr(VllmConfig, f"max_{name}", None))
for name in ("speculative_tokens", "prefill_lookahead_tokens"):
    setattr(Settings, f"num_{name}", getattr(VllmConfig, f"num_{name}", None))


class Drafting(Space):
    use_multi_module_mtp = getattr(SpeculativeConfig, "use_multi_module_mtp", None)
    use_eagle = SpeculativeConfig.use_eagle

    def use_eagle_block_drop(self) -> bool:
        return False


def settings(case: dict[str, Any], layers: list[dict[str, Any]]) -> Settings:
    flags = case["flags"]
    tp, mla = flags["tp"], any(layer["kind"] == "mla" for layer in layers)
    attention = [layer for layer in layers if layer["kind"] not in STATES]
    first = attention[0] if attention else {"kind": None}
    sparse = any("indexer" in layer for layer in layers)
    rows = sparse and flags["kv_cache_dtype"] == "fp8"  # MLAAttention makes it so of all caches
    kv_heads = 1 if mla else max(1, first.get("kv_heads", 1) // tp)
    head = first["kv_lora_rank"] + first["qk_rope_head_dim"] if first["kind"] == "mla" else first.get("k_head_dim", 0)
    hybrid = len(attention) not in (0, len(layers))
    caching = flags["enable_prefix_caching"] and bool(attention)
    aligned = caching and any(layer["kind"] in STATES for layer in layers)
    drafting = None
    if case["drafts"]:
        depth = Space(hf_config=Space(num_nextn_predict_layers=len(case["drafts"])))
        drafting = Drafting(
            method=flags["draft"], num_speculative_tokens=flags["num_speculative_tokens"], draft_model_config=depth
        )
    return Settings(
        model_config=Space(
            dtype=torch.bfloat16, use_mla=mla, is_hybrid=hybrid, architecture="", max_model_len=flags["max_model_len"],
            original_max_model_len=-1 if flags["auto_fit"] else flags["max_model_len"],
            get_num_kv_heads=lambda _: kv_heads, get_head_size=lambda: head, hf_config=Space(model_type="random"),
        ),
        cache_config=Space(
            cache_dtype="fp8_ds_mla" if rows else flags["kv_cache_dtype"],
            block_size=flags["block_size"] or 16, mamba_block_size=None,
            user_specified_block_size=flags["block_size"] is not None, user_specified_mamba_block_size=False,
            mamba_page_size_padded=None,
            mamba_cache_mode="align" if aligned else "none", mamba_cache_dtype="auto", use_replayssm=False,
            use_kda_recoverssm=False,
            mamba_ssm_cache_dtype={"auto": "auto", "fp32": "float32"}[flags["mamba_ssm_cache_dtype"]],
            kv_cache_dtype_skip_layers=[], skip_page_size_padded=None, enable_prefix_caching=caching,
            num_gpu_blocks_override=flags["num_gpu_blocks_override"], prefix_cache_retention_interval=None,
            prefix_match_unit=None, get_resolved_kv_cache_layout=_layout,
        ),
        parallel_config=Space(
            tensor_parallel_size=tp, pipeline_parallel_size=flags["pp"],
            decode_context_parallel_size=flags.get("dcp", 1), prefill_context_parallel_size=1,
        ),
        scheduler_config=Space(
            async_scheduling=flags["async_scheduling"], max_num_batched_tokens=flags["max_num_batched_tokens"],
            disable_hybrid_kv_cache_manager=not flags["hybrid_kv_cache_manager"],
        ),
        sparse=sparse, asked_dtype=flags["kv_cache_dtype"], speculative_config=drafting,
        diffusion_config=None, use_v2_model_runner=_second_runner(layers), kv_transfer_config=None,
        attention_config=Space(hisparse_config=None), device_config=Space(device_type="cuda"),
    )  # fmt: skip


def _second_runner(layers: list[dict[str, Any]]) -> bool:
    """Whether the release runs such a model with its second runner: hybrids since 0.29 (config/vllm.py)."""
    return not any(layer["kind"] in STATES for layer in layers) or tuple(map(int, VERSION.split("."))) >= (0, 29)


def call(function: Any, *arguments: Any) -> Any:
    """With as many arguments as this release takes: those of drafted tokens and of the state's dtype came last."""
    return function(*arguments[: len(signature(function).parameters)])


def state_of(layer: dict[str, Any], config: Settings) -> tuple[Any, Any, Any]:
    """(class, shapes, dtypes) of a state layer on one rank."""
    tp, drafted = config.parallel_config.tensor_parallel_size, config.num_speculative_tokens
    kind, dtype, ssm = layer["kind"], config.model_config.dtype, config.cache_config.mamba_ssm_cache_dtype
    if kind == "mamba1":
        shapes = Shapes.mamba1_state_shape(tp, layer["inner_dim"], layer["state_dim"], layer["conv_kernel"])
        return MambaBase, shapes, Dtypes.mamba1_state_dtype(dtype, "auto", ssm)
    if kind == "mamba2":
        shapes = Shapes.mamba2_state_shape(
            tp, layer["heads"] * layer["head_dim"], layer["groups"], layer["heads"], layer["head_dim"],
            layer["state_dim"], layer["conv_kernel"], drafted,
        )  # fmt: skip
        return MambaMixer2, shapes, Dtypes.mamba2_state_dtype(dtype, "auto", ssm)
    if kind == "gated_delta_net":
        names = ("key_heads", "value_heads", "key_head_dim", "value_head_dim", "conv_kernel")
        shapes = Shapes.gated_delta_net_state_shape(tp, *(layer[name] for name in names), drafted)
        return MambaBase, shapes, Dtypes.gated_delta_net_state_dtype(dtype, "auto", ssm)
    if kind == "kda":
        shapes = Shapes.kda_state_shape(
            tp, layer["heads"], layer["head_dim"], conv_kernel_size=layer["conv_kernel"], num_spec=drafted
        )
        return MambaBase, shapes, call(Dtypes.kda_state_dtype, dtype, "auto", ssm)
    shapes = call(Shapes.short_conv_state_shape, tp, layer["dim"], layer["conv_kernel"], drafted)
    return MambaBase, shapes, Dtypes.short_conv_state_dtype(dtype, "auto")


def specs_of(layer: dict[str, Any], config: Settings) -> list[Any]:
    """What vLLM's layer of that kind says that it keeps."""
    name, tp, kind = config.asked_dtype, config.parallel_config.tensor_parallel_size, layer["kind"]
    if kind in STATES:
        base, shapes, dtypes = state_of(layer, config)
        methods = {"get_state_shape": lambda _: shapes, "get_state_dtype": lambda _: dtypes}
        made = type("State", (base,), methods | {"mamba_type": MambaAttentionBackendEnum.MAMBA2})
        made.__abstractmethods__ = frozenset()
        return [made.get_kv_cache_spec(object.__new__(made), config)]
    sparse = kind == "mla" and config.sparse
    if sparse and name == "fp8":
        name = "fp8_ds_mla"
    backend = (FlashMLASparseBackend if sparse else TritonMLABackend) if kind == "mla" else TritonAttentionBackend
    common = {"kv_cache_dtype": name, "sliding_window": layer.get("window") if kind == "sliding" else None}
    if kind == "mla":
        size = layer["kv_lora_rank"] + layer["qk_rope_head_dim"]
        own = Space(
            **common, head_size=size, indexer=layer.get("indexer"), non_causal_multi_token_decode=False,
            attn_backend=backend, _uses_flat_kv_cache=lambda: False,
        )  # fmt: skip
        found = [customize(backend, MLAAttention.get_kv_cache_spec(own, config))]
        if "indexer" in layer:
            index = Space(cache_config=config.cache_config, head_dim=132, dtype=torch.uint8)
            spec = DeepseekV32IndexerCache.get_kv_cache_spec(index, config)
            found.append(customize(DeepseekV32IndexerBackend, spec))
        return found
    own = Space(
        **common, attn_type=AttentionType.DECODER, attn_backend=backend, attention_chunk_size=layer.get("window"),
        num_kv_heads=max(1, layer["kv_heads"] // tp), head_size=layer["k_head_dim"], head_size_v=layer["v_head_dim"],
        kv_cache_torch_dtype=kv_cache_dtype_str_to_dtype(name, config.model_config),
    )  # fmt: skip
    made = ChunkedLocalAttention if kind == "chunked" else Attention
    return [customize(backend, made.get_kv_cache_spec(own, config))]


def block_size(config: Settings, layers: list[dict[str, Any]]) -> None:
    """Settles the block size, and what states are padded to."""
    kinds = {layer["kind"] for layer in layers}
    found = [FlashMLASparseBackend, DeepseekV32IndexerBackend] if config.sparse else [TritonMLABackend]
    found = (found if "mla" in kinds else []) + ([TritonAttentionBackend] if kinds - {"mla", *STATES} else [])
    state = next((layer for layer in layers if layer["kind"] in STATES), None)
    if state is not None:
        _, shapes, dtypes = state_of(state, config)
        model = Space(
            get_mamba_state_shape_from_config=lambda _: shapes, get_mamba_state_dtype_from_config=lambda _: dtypes
        )
    finders = {"_find_non_ssm_backends": found, "_find_non_ssm_backend": found[0] if found else None}  # 0.31, before
    with (
        patch("vllm.config.vllm.set_current_vllm_config", lambda _: contextlib.nullcontext()),
        patch.multiple(Platform, **{name: lambda _, it=it: it for name, it in finders.items()}, create=True),
        patch("vllm.model_executor.models.ModelRegistry.resolve_model_cls", lambda *_, **__: (model, "")),
    ):
        Platform.update_block_size_for_backend(config)
    cache = config.cache_config
    aligned = cache.mamba_cache_mode == "align"
    cache.mamba_block_size = cache.block_size if aligned else config.model_config.max_model_len


def capacity(config: Settings, scheduler: Any) -> tuple[int, float]:
    """(tokens, concurrency) as logged; before 0.23 no function returns them, and they are read off the log."""
    if hasattr(utils, "get_kv_cache_capacity"):
        found: tuple[int, float] = utils.get_kv_cache_capacity(config, scheduler)
        return found
    lines: list[tuple[Any, ...]] = []
    with patch.object(utils, "logger", Space(info_once=lambda *it, **_: lines.append(it), info=lambda *it: None)):
        utils._report_kv_cache_config(config, scheduler)
    tokens = next(int(it[1].replace(",", "")) for it in lines if "cache size" in it[0])
    return tokens, utils.get_max_concurrency_for_kv_cache_config(config, scheduler)


def bytes_per_block(config: Settings, found: Any) -> int:
    """Of a stage; before 0.22 no function says it, but its tensors do."""
    if not hasattr(utils, "_pool_bytes_per_block"):
        return int(sum(tensor.size for tensor in found.kv_cache_tensors)) // found.num_blocks
    arguments = len(signature(utils._pool_bytes_per_block).parameters)
    size: int = utils._pool_bytes_per_block(*(config, found.kv_cache_groups)[-arguments:])
    return size


def plan(case: dict[str, Any]) -> dict[str, Any]:
    """What vLLM would log and allocate, or the beginning of its refusal."""
    layers = [layer for layer in case["layers"] for _ in range(layer.get("count", 1))]
    drafts = [layer for layer in case["drafts"] for _ in range(layer.get("count", 1))]
    config, pp = settings(case, layers), case["flags"]["pp"]
    try:
        block_size(config, layers + drafts)
        ranges = [get_pp_indices(len(layers), rank, pp) for rank in range(pp)]
        stages: list[dict[str, Any]] = []
        for rank, (start, end) in enumerate(ranges):
            here = [*enumerate(layers)][start:end] + ([*enumerate(drafts, len(layers))] if rank == pp - 1 else [])
            stages.append({f"{i}.{j}": spec for i, x in here for j, spec in enumerate(specs_of(x, config))})
        configs = utils.get_kv_cache_configs(config, stages, [case["flags"]["pool_bytes"]] * pp)
        scheduler = utils.generate_scheduler_kv_cache_config(configs)
        tokens, concurrency = capacity(config, scheduler)
    except (ValueError, NotImplementedError, AssertionError) as refused:
        return {"refusal": str(refused)[:160]}
    groups = []
    for parts in zip(*(found.kv_cache_groups for found in configs), strict=True):
        specs = [part.kv_cache_spec for part in parts if part.layer_names]
        names = [name for part in parts for name in part.layer_names]
        pages = [x.page_size_bytes for spec in specs for x in getattr(spec, "kv_cache_specs", {0: spec}).values()]
        blocks = max(math.ceil(spec.max_memory_usage_bytes(config) / spec.page_size_bytes) for spec in specs)
        groups.append([type(specs[0]).__name__, len(names), specs[0].block_size, max(pages), blocks])
    replicas = {"kv_tp_replicas": configs[0].kv_tp_replicas} if hasattr(configs[0], "kv_tp_replicas") else {}
    return {
        "groups": groups, "num_blocks": scheduler.num_blocks, "tokens": tokens, "max_concurrency": concurrency,
        "max_model_len": config.model_config.max_model_len, **replicas,
        "bytes_per_block": [bytes_per_block(config, found) for found in configs],
    }  # fmt: skip
