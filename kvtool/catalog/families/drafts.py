"""Draft layers for speculative decoding that a checkpoint brings with it (multi-token prediction)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kvtool.catalog.fields import Fields
from kvtool.catalog.model import CompressedAttention, FullAttention, LatentAttention, Layer

_COUNTS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")
_MAX_DRAFTS = 64
# Architectures whose draft layers keep what their last full layer keeps, as vLLM builds them.
_KNOWN = {
    *("deepseek_v3", "deepseek_v32", "deepseek_v4", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "mimo", "nemotron_h"),
    *("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"),
}
_UNSAID = {"qwen3_next": 1}  # its configs do not say, its checkpoints have one


def draft_layers(fields: Fields, model_type: str, layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The draft layers a config counts; none where it has none, or where what they keep is not known."""
    count = fields.optional_integer(*_COUNTS, low=0, high=_MAX_DRAFTS)
    count = _UNSAID.get(model_type, 0) if count is None else count
    if model_type not in _KNOWN or not count:
        return ()
    compressed = next((layer.cache for layer in layers if isinstance(layer.cache, CompressedAttention)), None)
    if compressed is not None:
        # Those of DeepSeek-V4 keep the window alone: the ratios behind the layers' own are 0.
        tail = (fields.integers("compress_ratios") or [])[len(layers) :]
        return () if any(tail) else (Layer(cache=replace(compressed, ratio=0)),) * count
    growing = [
        layer for layer in layers if isinstance(layer.cache, LatentAttention) or type(layer.cache) is FullAttention
    ]
    shares_index = len({layer.indexer is None for layer in growing}) > 1
    return () if shares_index or not growing else (growing[-1],) * count
