"""Situations by their words, and the arithmetic of Llama-3.1-8B on an H100 from its shape and the card's data alone.

Shape: config.json of meta-llama/Llama-3.1-8B. Card: NVIDIA's data sheet of the H100 SXM (3.35 TB/s, 989 dense bf16
TFLOP/s, PCIe 5 x16 at 64 GB/s and NVLink at 450 GB/s a direction).
"""

from __future__ import annotations

from typing import Any

from kvtool.advise.advise import fewest_gpus
from kvtool.advise.situation import Situation
from kvtool.advise.traffic import traffic_of
from kvtool.catalog.gpus import find_gpu
from kvtool.catalog.resolve import resolve_model
from kvtool.replay.tiers.options import TierOptions, parse_tiers
from kvtool.workloads.scenarios.base import Shape

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB = 32, 4096, 32, 8, 128, 14336, 128256
LAYER_PARAMS = (
    HIDDEN * (2 * HEADS + 2 * KV_HEADS) * HEAD_DIM + 3 * HIDDEN * FFN + 2 * HIDDEN
)  # Q and O, K and V, MLP, norms
BODY_PARAMS = LAYERS * LAYER_PARAMS + HIDDEN
HEAD_PARAMS = VOCAB * HIDDEN
KV_BYTES = 2 * LAYERS * KV_HEADS * HEAD_DIM * 2  # of a token in bf16
READ, RATE, LINK, PCIE = 3350e9, 989e12, 450e9, 64e9  # of one H100, a second
COLLECTIVE_S = 10e-6


def prefill_s(tokens: int, cached: int = 0, batch: int = 1, tp: int = 1) -> float:
    """The longer of the FLOPs and of reading the weights, and two ring all-reduces a layer."""
    new = tokens - min(cached, tokens - 1)
    pairs = sum(range(tokens - new + 1, tokens + 1))
    flops = 2 * (BODY_PARAMS * new + HEAD_PARAMS) + 4 * HEADS * HEAD_DIM * LAYERS * pairs
    read_s = 2 * (BODY_PARAMS + HEAD_PARAMS) / tp / READ
    return max(batch * flops / tp / RATE, read_s) + all_reduces_s(batch * new, tp)


def step_s(context: int, batch: int = 1, tp: int = 1, kv_bytes: int = KV_BYTES) -> float:
    """The longer of reading weights and cache and of the FLOPs."""
    read_s = (2 * (BODY_PARAMS + HEAD_PARAMS) + batch * context * kv_bytes) / tp / READ
    flops = batch * (2 * (BODY_PARAMS + HEAD_PARAMS) + 4 * HEADS * HEAD_DIM * LAYERS * context)
    return max(read_s, flops / tp / RATE) + all_reduces_s(batch, tp)


def all_reduces_s(tokens: int, tp: int) -> float:
    if tp == 1:
        return 0.0
    return 2 * LAYERS * (COLLECTIVE_S + 2 * (tp - 1) / tp * tokens * HIDDEN * 2 / LINK)


def situation(model: str = "llama-3.1-8b", gpu: str = "h100", **asked: Any) -> Situation:
    """As the command line makes it; lengths and `workload` are the traffic's, the rest the situation's."""
    chosen, card = resolve_model(model), find_gpu(gpu)
    workload = asked.pop("workload", "independent")
    shape = Shape(
        num_prompts=asked.pop("num_prompts", 64),
        input_len=asked.pop("input_len", 4096),
        output_len=asked.pop("output_len", 256),
        block_size=16,
        vocab_size=chosen.vocab_size or 32000,
    )
    tiers = TierOptions(tiers=parse_tiers(asked.pop("tiers", "dram=1TiB"))[0]).with_speeds({}, card.pcie_gbps)
    num_gpus = asked.pop("num_gpus", None)
    made = Situation(
        name=model,
        model=chosen,
        gpu=card,
        num_gpus=num_gpus or 1,
        workload=workload,
        traffic=traffic_of(workload, shape),
        goal=asked.pop("goal", "latency"),
        tiers=tiers,
        **asked,
    )
    return made if num_gpus else fewest_gpus(made)
