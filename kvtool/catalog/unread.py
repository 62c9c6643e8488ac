"""The last check on a config: does it say anything about attention or state that its reader did not ask for?"""

from __future__ import annotations

import re

from kvtool.catalog.fields import Fields

_SUSPECT = re.compile(
    r"(?:^|_)(?:sliding|window|swa|local|global|layer_types?|block_types?|layer_ids|lora_rank|index\w*|mamba\w*|ssm\w*|conv\w*"
    r"|linear|lru|rwkv|recurrent|retention|state|states|compress\w*|chunk\w*|shared|share|cla|yoco|hybrid\w*|cross|encoder|decoder"
    r"|sparse\w*|kda|delta|mla|latent|memory|sinks?|head_dim|kv|key_value|heads|groups?|channels|attention_types?|attn_types?"
    r"|layer_config|block_configs?|multi_query|hc)(?:_|$)"
)
# Names that match, and that the cache does not depend on.
_HARMLESS = re.compile(
    r"rope_\w+|\w+_rope_\w+|dual_chunk_attention_config|(linear|full)_attn_(alpha|beta)_factor|layernorm_\w+|output_hidden_states|activation_\w+|attn_res_block_size|chunk_size_feed_forward|encoder_no_repeat_ngram_size|tie_encoder_decoder|.*shared_expert\w*|n_shared_experts"
    r"|num_shared_experts|moe_num_shared_experts|shared_intermediate_size|num_beam_groups|decoder_sparse_step|decoder_start_token_id"
    r"|.*_token_id|.*_token_index|use_bias|use_linear_bias|linear_bias|add_bias_linear|n_group|topk_group|num_expert_group|state_dict"
    r"|summary_\w+|qk_head_dim|attention_head_dim|parallel_attn|bias_dropout_\w+|apply_residual\w+|num_shared_kv|router_\w+"
    r"|mtp_\w+|num_mtp_\w+|conv_bias|mamba_conv_bias|use_conv_bias|mamba_proj_bias|mamba_chunk_size|mamba_dt_\w+|mamba_hidden_act"
    r"|mamba_ssm_cache_dtype|mamba_ssm_dtype|use_mamba_kernels|use_mambapy|chunk_size|conv_use_xavier_init|linear_allow_neg_eigval"
    r"|moe_shared_expert\w*|index_share_for_mtp_iteration|indexer_rope_interleave|moe_latent_size|latent_moe_use_norm"
    r"|mla_use_nope|mla_use_output_gate|attn_output_gate|query_pre_attn_scalar|multi_query_group_num|hidden_size_per_layer_input"
    r"|vocab_size_per_layer_input|use_mla_\w+|decoder_layerdrop|init_pos_emb\w*|max_window_layers|window_attn_skip_freq"
    r"|sparse_block_\w+|pretraining_tp|conv_dim_out|conv_use_\w+|use_double_wide_mlp|num_local_experts|num_logits_to_keep"
    r"|global_batch_size|local_rank"
)


def refuse_unread(fields: Fields) -> None:
    """Raise KvtoolError naming the first set field that may change what is stored and that no reader asked for."""
    for name, value in fields.values.items():
        if name in fields.read or _is_off(value) or _HARMLESS.fullmatch(name):
            continue
        if _SUSPECT.search(name):
            raise fields.error(
                f"field {name!r} is not known for this architecture and may change what its cache stores"
            )


def _is_off(value: object) -> bool:
    return value is None or value is False or value in (0, "", [], {}) or value == -1
