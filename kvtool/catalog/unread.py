"""The last check on a config: does it say anything about attention or state that its reader did not ask for?"""

from __future__ import annotations

import re

from kvtool.catalog.fields import Fields

# Words of a field's name, between underscores, that speak of what a layer keeps.
_WORDS = {
    *("sliding", "window", "swa", "local", "global", "cross", "encoder", "shared", "share", "cla", "yoco"),
    *("linear", "lru", "rwkv", "recurrent", "retention", "state", "states", "memory", "kda", "delta", "mla", "latent"),
    *("sink", "sinks", "kv", "head", "heads", "group", "groups", "channels", "hc"),
}
_BEGINNINGS = ("index", "mamba", "ssm", "conv", "compress", "chunk", "hybrid", "sparse")
_PHRASES = re.compile(
    r"key_value|layer_types?|block_types?|layer_ids|layer_(?:period|offset|indices|config)|(?:attn|attention)_(?:layers?|types?)"
    r"|lora_rank|head_dim|block_configs?|multi_query"
)
# Names that speak of something else after all: positions, experts, biases, kernels, generation, training.
_HARMLESS = re.compile(
    r"rope_\w+|\w+_rope_\w+|layernorm_\w+|activation_\w+|router_\w+|summary_\w+|mtp_\w+|num_mtp_\w+|num_nextn_\w+|init_\w+"
    r"|\w*shared_experts?\w*|shared_intermediate_size|shared_moe_\w+|num_local_experts|decoder_sparse_step|expert_layer_\w+|n_group"
    r"|topk_group|num_expert_group|\w*_token_id|\w*_token_index|\w*conv_bias|\w*linear_bias|add_bias_linear"
    r"|(?:linear|full)_attn_(?:alpha|beta)_factor|mamba_(?:proj_bias|chunk_size|dt_\w+|hidden_act|ssm_cache_dtype|ssm_dtype)"
    r"|use_mamba_kernels|chunk_size|chunk_size_feed_forward|dual_chunk_attention_config|attn_res_block_size|conv_dim_out"
    r"|conv_use_\w+|output_hidden_states|encoder_no_repeat_ngram_size|tie_encoder_decoder|num_beam_groups|qk_head_dim"
    r"|mla_use_nope|mla_use_output_gate|latent_moe_use_norm|moe_latent_size|index_share_for_mtp_iteration|local_rank"
    r"|indexer_rope_interleave|\w+_per_layer_input|lm_head\w*|untie_\w+|\w*head_bias"
)


def refuse_unread(fields: Fields) -> None:
    """Raise KvtoolError naming the first set field that may change what is stored and that no reader asked for."""
    for name in unread(fields):
        raise fields.error(
            f"field {name!r} is not known for this architecture and may change what its cache stores: read it as one "
            "that you know it to be like with --as, as --as llama"
        )


def unread(fields: Fields) -> list[str]:
    """The set fields that may change what is stored and that no reader asked for."""
    return [
        name
        for name, value in fields.values.items()
        if name not in fields.read and not _is_off(value) and is_suspect(name)
    ]


def is_suspect(name: str) -> bool:
    """Whether a field's name speaks of what layers keep."""
    words = name.lower().split("_")
    speaks = any(word in _WORDS or word.startswith(_BEGINNINGS) for word in words) or _PHRASES.search(name)
    return bool(speaks) and not _HARMLESS.fullmatch(name)


def _is_off(value: object) -> bool:
    return value is None or value is False or value in (0, "", [], {}) or value == -1
