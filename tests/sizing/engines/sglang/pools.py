"""Pools of starts that SGLang's own configurators decided, and where kvtool's are not the same."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from kvtool.catalog.gpus import find_gpu
from kvtool.catalog.hf_config import model_from_config
from kvtool.catalog.model import Model
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.sglang import plan
from kvtool.sizing.parallel import Parallel
from kvtool.system.errors import KvtoolError

DATA = Path(__file__).parents[3] / "data"
CARDS = {"": None, "flashmla_kv": "h200", "trtllm": "b200"}  # that have this backend by default


@cache
def _text(name: str) -> str:
    return (DATA / "vllm_configs" / f"{name}.json").read_text()


def read_changed(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """That config with other values in its text part."""
    config: dict[str, Any] = json.loads(_text(name))
    config.get("text_config", config).update(changes)
    return config


def changed_model(case: dict[str, Any]) -> Model:
    config = read_changed(case["config"], case.get("changes", {}))
    return model_from_config(config, id=case["config"], source="a test")


def options_of(case: dict[str, Any]) -> EngineOptions:
    """The recorded tp counts the ranks of one replica of attention; --tp counts those of all."""
    card, replicas = CARDS[case["dsa_backend"]], case["attention_dp"]
    return EngineOptions(
        name="sglang",
        gpu=find_gpu(card) if card else None,
        parallel=Parallel(
            tp=case["tp"] * replicas, pp=case["pp"], dcp=case["dcp"], dp=replicas, dp_attention=replicas > 1
        ),
        kv_cache_dtype="bf16" if case["element_bytes"] == 2 else "fp8",
        block_size=case["page_size"],
        max_model_len=case["context"],
        chunked_prefill_size=8192,
        swa_full_tokens_ratio=case["swa_ratio"],
        mamba_full_memory_ratio=case["mamba_ratio"],
        max_mamba_cache_size=case["max_mamba_cache_size"],
        max_running_requests=case["max_running_requests"],
        max_total_tokens=case["max_total_tokens"],
        enable_prefix_caching=case["radix_cache"],
    )


def differences(model: Model, case: dict[str, Any]) -> list[str]:
    """Every figure of the pools that is not as SGLang's code made it."""
    expected = case["expected"]
    try:
        planned = plan(model, options_of(case), pool_bytes=case["pool_bytes"])
    except KvtoolError as error:
        return [f"KvtoolError: {error}"]
    allocation = planned.allocation
    if expected.get("refusal") or allocation is None:
        both = bool(expected.get("refusal")) and allocation is None
        return [] if both else [f"refusal: SGLang {expected.get('refusal')}, kvtool {planned.refusal}"]
    found = {
        "max_total_num_tokens": allocation.max_total_num_tokens,
        "swa_tokens": allocation.tokens.swa,
        "state_slots": allocation.tokens.state_slots,
        "requests": allocation.max_running_requests,
    }
    return [f"{name}: SGLang {expected[name]}, kvtool {ours}" for name, ours in found.items() if ours != expected[name]]
