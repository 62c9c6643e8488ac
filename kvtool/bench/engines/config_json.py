"""A catalogue model as the config.json that transformers, vLLM and SGLang read, where our random weights fit it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from kvtool.bench.peers import PeerError
from kvtool.catalog.decoder import Decoder, RopeScaling
from kvtool.catalog.model import FullAttention, Model, SlidingAttention

# Families whose tensors have Llama's names and shapes, so that the same random weights are drawn under them.
CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
}


def config_json(model: Model, decoder: Decoder, *, dtype: str, max_positions: int) -> dict[str, Any]:
    """The config of `model` with room for `max_positions`. Raises PeerError for a model that has none here."""
    shape = _shape(model, decoder)
    return {
        "architectures": [CLASSES[decoder.family]],
        "model_type": decoder.family,
        "dtype": {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[dtype],
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.k_head_dim,
        "hidden_act": decoder.activation,
        "rms_norm_eps": decoder.norm_eps,
        "rope_theta": decoder.rope_theta,
        "rope_scaling": _rope_scaling(decoder.rope_scaling),
        "attention_bias": decoder.qkv_bias and decoder.family != "qwen2",  # whose class has it built in
        "mlp_bias": decoder.mlp_bias,
        "tie_word_embeddings": bool(model.tie_word_embeddings),
        "max_position_embeddings": max(max_positions, model.max_position_embeddings or 0),
        "bos_token_id": None,
        "eos_token_id": None,  # random weights must not end an answer
        "pad_token_id": None,
        **_windows(model),
        **({"no_rope_layers": _rotating(model, decoder)} if decoder.family == "smollm3" else {}),
    }


def _shape(model: Model, decoder: Decoder) -> FullAttention:
    """The one shape of all layers. Raises PeerError."""
    shapes = {
        (layer.cache.kv_heads, layer.cache.k_head_dim, layer.cache.v_head_dim): layer.cache
        for layer in model.layers
        if isinstance(layer.cache, FullAttention)
    }
    plain = all(isinstance(layer.cache, FullAttention) and layer.indexer is None for layer in model.layers)
    if decoder.family not in CLASSES or model.moe is not None or not plain or len(shapes) != 1:
        raise PeerError(
            f"random weights of {model.id} have no transformers config: only dense {', '.join(CLASSES)} do "
            "(others with --weights FOLDER)"
        )
    return next(iter(shapes.values()))


def _rope_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """With HF's names, what is not set left out."""
    if scaling is None:
        return None
    said = {name: value for name, value in asdict(scaling).items() if value is not None and value != ()}
    kind = said.pop("kind")
    if kind != "yarn":
        said.pop("truncate")
    return {"rope_type": kind, **said}


def _windows(model: Model) -> dict[str, Any]:
    """Which layers slide, and how far."""
    windows = {layer.cache.window for layer in model.layers if isinstance(layer.cache, SlidingAttention)}
    if not windows:
        return {"sliding_window": None}
    if len(windows) > 1:
        raise PeerError(f"{model.id} has sliding windows of {len(windows)} lengths: no transformers config says so")
    kinds = ["sliding" if isinstance(layer.cache, SlidingAttention) else "full" for layer in model.layers]
    return {
        "sliding_window": windows.pop(),
        "use_sliding_window": True,
        "layer_types": [f"{kind}_attention" for kind in kinds],
        "max_window_layers": kinds.index("sliding"),
    }


def _rotating(model: Model, decoder: Decoder) -> list[int]:
    return [int(decoder.rotates(index)) for index in range(model.num_layers)]
