"""Small random models that ranks share, and two layers of SmolLM2-135M's shape."""

from __future__ import annotations

from collections.abc import Mapping

from kvtool.catalog.hf_config import model_from_config
from kvtool.catalog.model import Model

_SMALL = {
    "model_type": "llama",
    "vocab_size": 259,
    "hidden_size": 128,
    "intermediate_size": 211,  # no number of ranks divides it
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
_LATENT = {
    **_SMALL,
    "model_type": "deepseek_v3",
    "num_key_value_heads": 8,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 36,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
}
_SINKS = {
    **_SMALL,
    "model_type": "gpt_oss",
    "intermediate_size": 48,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 21,
    "layer_types": ["sliding_attention", "full_attention"],
    "swiglu_limit": 7.0,
    "attention_bias": True,
}
# https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct config.json, but for the number of layers (30).
_SMOLLM2 = {
    **_SMALL,
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "tie_word_embeddings": True,
}


def _model(name: str, config: Mapping[str, object]) -> Model:
    return model_from_config(config, id=name, source="made for tests")


MODELS = {
    name: _model(name, config)
    for name, config in {"gqa": _SMALL, "mla": _LATENT, "sinks": _SINKS, "smollm2": _SMOLLM2}.items()
}
