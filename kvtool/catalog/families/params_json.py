"""Mistral's own params.json in the words of a config.json: the same model, under other names."""

from __future__ import annotations

from collections.abc import Mapping

_NAMES = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "hidden_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "max_seq_len": "max_position_embeddings",
    "tied_embeddings": "tie_word_embeddings",
}
_EXPERTS = {
    "num_experts": "n_routed_experts",
    "num_experts_per_tok": "num_experts_per_tok",
    "expert_hidden_dim": "moe_intermediate_size",
    "num_shared_experts": "n_shared_experts",
    "first_k_dense_replace": "first_k_dense_replace",
    "route_every_n": "moe_layer_freq",
    "num_expert_groups": "n_group",
    "num_expert_groups_per_tok": "topk_group",
    "routed_scale": "routed_scaling_factor",
}
_OF_TRAINING = {"expert_parallel", "expert_model_parallel"}
# Towers, positions and biases: what a text model's cache does not depend on.
_BESIDE = {"vision_encoder", "audio_encoder", "llama_4_scaling", "yarn", "multimodal", "use_biases", "model_parallel"}


def is_params_json(config: Mapping[str, object]) -> bool:
    """Whether it is that format: no model_type, and Mistral's names of the sizes."""
    return (
        "model_type" not in config and "architectures" not in config and {"dim", "n_layers", "n_heads"} <= set(config)
    )


def as_config(params: Mapping[str, object]) -> dict[str, object]:
    """The config.json of the same model. What has no other name there keeps its own, for the reader to judge."""
    config = {_NAMES.get(name, name): value for name, value in params.items() if name not in _BESIDE}
    config["model_type"] = "mistral4" if "kv_lora_rank" in params else "mixtral" if "moe" in params else "mistral"
    config.setdefault("sliding_window", None)
    moe = config.pop("moe", None)
    for name, value in moe.items() if isinstance(moe, Mapping) else ():
        if name not in _OF_TRAINING:
            config[_EXPERTS.get(name, str(name))] = value
    if config["model_type"] == "mixtral":
        config["num_local_experts"] = config.pop("n_routed_experts", None)
    quantised = config.pop("quantization", None)
    if isinstance(quantised, Mapping) and str(quantised.get("qformat_weight", "")).startswith("fp8"):
        config["quantization_config"] = {"quant_method": "fp8"}
    return config
