"""Tiny models of many architectures run in transformers: the vectors their caches hold are those kvtool reads."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvtool.catalog.hf_config import model_from_config
from kvtool.catalog.model import (
    FullAttention,
    GatedDeltaNet,
    KimiDeltaAttention,
    Mamba1,
    Mamba2,
    SharedAttention,
    ShortConvolution,
    SlidingAttention,
)

LAYERS, HIDDEN, HEADS = 6, 64, 4
TINY = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers"), LAYERS),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), HIDDEN),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "moe_intermediate_size", "ffn_hidden_size"), 48),
    **dict.fromkeys(("shared_expert_intermediate_size", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k"), 2),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 128),
    "head_dim": 32,
    "sliding_window": 4,
    "pad_token_id": 0,
    "hidden_size_per_layer_input": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_heads": 4,
    "linear_head_dim": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 8,
    "n_groups": 2,
    "state_size": 8,
    "v_head_dim": 16,
    "max_position_embeddings": 64,
}
TYPES = [
    *("llama", "gpt2", "opt", "bloom", "gpt_neox", "gpt_bigcode", "falcon", "mpt", "stablelm", "phi", "cohere", "glm4"),
    *("mistral", "phi3", "starcoder2", "qwen2", "qwen3", "qwen3_moe", "mixtral", "gemma", "gemma2", "gemma3_text"),
    *("cohere2", "olmo2", "olmo3", "gpt_oss", "exaone4", "smollm3", "afmoe", "granite", "ernie4_5", "minimax_m2"),
    *("gemma3n_text", "gemma4_text", "lfm2", "jamba", "mamba", "mamba2", "bamba", "nemotron_h", "granitemoehybrid"),
    *("qwen3_next", "qwen3_5_text", "kimi_linear"),
]
OTHERWISE: dict[str, dict[str, Any]] = {
    "gemma3n_text": {"num_hidden_layers": 12, "num_kv_shared_layers": 2},
    "gemma4_text": {"num_hidden_layers": 12, "num_kv_shared_layers": 2},
    "bamba": {"attn_layer_indices": [2, 4]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 3},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 3},
    "kimi_linear": {"num_key_value_heads": HEADS},
    "mamba2": {"num_heads": 4, "head_dim": 32},
    "nemotron_h": {"sliding_window": None},
}


def _tiny_config(model_type: str) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    known = set(kind.__dataclass_fields__)
    sizes = {name: size for name, size in TINY.items() if name in known}
    return kind(**{**sizes, **OTHERWISE.get(model_type, {})})


def _cache_after_nine_tokens(config: Any) -> list[Any]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        out = model(torch.randint(1, 100, (1, 9)), use_cache=True)
    cache = out.past_key_values if hasattr(out, "past_key_values") else out.cache_params
    return list(cache.layers)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", TYPES)
def test_cache_is_what_the_config_says(model_type: str) -> None:
    config = _tiny_config(model_type)
    values = json.loads(json.dumps(config.to_dict(), default=str))
    model = model_from_config(values, id=model_type, source=model_type)
    assert model.tie_word_embeddings == config.tie_word_embeddings
    held = _cache_after_nine_tokens(config)
    kinds = [layer.cache for layer in model.layers]
    if len(held) < len(kinds):
        kinds = [kind for kind in kinds if not isinstance(kind, SharedAttention)]
    assert len(held) == len(kinds)
    for kind, layer in zip(kinds, held, strict=True):
        if isinstance(kind, FullAttention):
            _, kv_heads, _, k_head_dim = layer.keys.shape
            assert (kv_heads, k_head_dim) == (kind.kv_heads, kind.k_head_dim)
            assert layer.values.shape[3] == kind.v_head_dim
            assert ("Sliding" in type(layer).__name__) == isinstance(kind, SlidingAttention)
        elif not isinstance(kind, SharedAttention | type(None)):
            assert _state_shapes(layer) == _expected_shapes(kind)


def _state_shapes(layer: Any) -> tuple[Any, Any]:
    """Shapes of the convolution's and the recurrence's state without the batch; transformers keeps `kernel` inputs."""
    if not hasattr(layer, "conv_states"):
        return None, None
    states = (layer.conv_states[0], layer.recurrent_states[0])
    return tuple(None if state is None else tuple(state.shape[1:]) for state in states)  # type: ignore[return-value]


def _expected_shapes(kind: object) -> tuple[Any, Any]:
    match kind:
        case Mamba1():
            return (kind.inner_dim, kind.conv_kernel), (kind.inner_dim, kind.state_dim)
        case Mamba2():
            channels = kind.heads * kind.head_dim + 2 * kind.groups * kind.state_dim
            return (channels, kind.conv_kernel), (kind.heads, kind.head_dim, kind.state_dim)
        case GatedDeltaNet():
            keys, values = kind.key_heads * kind.key_head_dim, kind.value_heads * kind.value_head_dim
            return (2 * keys + values, kind.conv_kernel), (kind.value_heads, kind.key_head_dim, kind.value_head_dim)
        case KimiDeltaAttention():
            return (3 * kind.heads * kind.head_dim, kind.conv_kernel), (kind.heads, kind.head_dim, kind.head_dim)
        case ShortConvolution():
            return (kind.dim, kind.conv_kernel), None
    return None, None
