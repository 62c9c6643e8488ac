"""Random models as tools/random_plans.py draws them, and where kvtool's plan of one is not vLLM's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kvtool.catalog.gpus import find_gpu
from kvtool.catalog.model import Model
from kvtool.catalog.models_yaml import Entry
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.vllm import plan
from kvtool.sizing.engines.vllm.plan import VllmPlan
from kvtool.sizing.parallel import Parallel
from kvtool.system.errors import KvtoolError

CARDS = {"A100": "A100-SXM-80GB", "H100": "H100-SXM-80GB"}
_LAYOUT = ("tp", "pp", "dcp")


def model_of(case: dict[str, Any]) -> Model:
    """The target with its drafting layers; 64 heads of which any drawn number of KV heads is a part."""
    target, *draft = [
        Entry(
            id="random", layers=layers, num_heads=64, hidden_size=4096, source="drawn", confidence="given",
            dtype="bfloat16", max_position_embeddings=1 << 20,
        ).model()
        for layers in (case["layers"], case["drafts"])
        if layers
    ]  # fmt: skip
    if not draft:
        return target
    modules = len(draft[0].layers) if case["flags"]["draft"] == "mtp" else 1
    return replace(target, draft_layers=draft[0].layers, draft_modules=modules)


def options_of(case: dict[str, Any]) -> EngineOptions:
    flags = {
        name: value for name, value in case["flags"].items() if name not in (*_LAYOUT, "gpu", "draft", "pool_bytes")
    }
    return EngineOptions(
        name="vllm",
        version=case["version"],
        gpu=find_gpu(CARDS[case["flags"]["gpu"]]),
        parallel=Parallel(**{name: case["flags"].get(name, 1) for name in _LAYOUT}),
        **flags,
    )


def differences(case: dict[str, Any]) -> list[str]:
    """Every figure of the plan that is not as vLLM's code made it."""
    expected = case["expected"]
    try:
        found = plan(model_of(case), options_of(case), pool_bytes=case["flags"]["pool_bytes"])
    except KvtoolError as error:
        return [] if "refusal" in expected else [f"KvtoolError: {error}"]
    if "refusal" in expected or found.refusal:
        return _refusals(expected.get("refusal"), found.refusal)
    ours = figures(found)
    return [f"{name}: vLLM {value}, kvtool {ours[name]}" for name, value in expected.items() if ours[name] != value]


def _refusals(theirs: str | None, ours: str | None) -> list[str]:
    """Both refuse, and where it is for the memory that is missing, in the same words (some assertions have none)."""
    if (
        theirs is None
        or ours is None
        or (theirs.startswith("To serve") and ours[:115] != theirs.replace("models's", "model's")[:115])
    ):
        return [f"refusal: vLLM {theirs}, kvtool {ours}"]
    return []


def figures(found: VllmPlan) -> dict[str, Any]:
    longest = found.max_model_len or 0
    return {
        "groups": [
            [
                group.kind,
                len(group.layers),
                group.block_size,
                max(cache.page_bytes for cache in group.layers),
                group.blocks(longest, found.inputs),
            ]
            for group in found.groups
        ],
        "num_blocks": found.num_blocks,
        "tokens": found.gpu_kv_cache_tokens,
        "max_concurrency": found.max_concurrency,
        "max_model_len": found.max_model_len,
        "kv_tp_replicas": found.kv_tp_replicas,
        "bytes_per_block": list(found.bytes_per_block),
    }
