"""Tiny random models of every family the engine runs, saved by transformers, which also gives the reference logits.

Weights are large enough to matter: projections of unit gain, norms away from one, biases and router corrections away
from zero, so that a forgotten one shows in the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

VOCAB_SIZE = 131
MAX_POSITIONS = 256
_PLAIN = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_POSITIONS,
    "tie_word_embeddings": False,
}
_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LATENT = {
    **_PLAIN,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "q_lora_rank": 24,
    "moe_intermediate_size": 24,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.7,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32,
    "beta_slow": 1,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 1024,
    "short_factor": [1.0, 1.3, 2.0, 4.5, 5.0, 7.5],
    "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
}
_LONG_CONTEXT = {"max_position_embeddings": 4096, "original_max_position_embeddings": 1024}
_PHI3 = {**_PLAIN, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
# Every query and key of a tiny model is small: without a larger scale and narrower caps, soft-caps would cap nothing.
_GEMMA = {
    **_PLAIN,
    "num_hidden_layers": 4,
    "head_dim": 24,
    "sliding_window": 13,
    "query_pre_attn_scalar": 2,
    "tie_word_embeddings": True,
    "eos_token_id": None,
}
_GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
}
_GPT_OSS = {
    **_PLAIN,
    "num_hidden_layers": 4,
    "head_dim": 24,
    "sliding_window": 13,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "swiglu_limit": 1.5,
}
_GPT2 = {"vocab_size": VOCAB_SIZE, "n_positions": MAX_POSITIONS, "n_embd": 64, "n_layer": 3, "n_head": 4}
_OPT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "ffn_dim": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_POSITIONS,
}

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama-2-mha": LlamaConfig(**_PLAIN | {"num_key_value_heads": 4}),
    "llama-3-gqa": LlamaConfig(**_PLAIN | {"num_attention_heads": 8}, rope_parameters=_LLAMA3),
    "llama-mqa-tied": LlamaConfig(**_PLAIN | {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama-biased": LlamaConfig(**_PLAIN, attention_bias=True, mlp_bias=True),
    "llama-wide-heads": LlamaConfig(**_PLAIN, head_dim=32, hidden_act="gelu_pytorch_tanh"),
    "llama-linear": LlamaConfig(
        **_PLAIN, rope_parameters={"rope_type": "linear", "rope_theta": 5000.0, "factor": 3.0}
    ),
    "llama-yarn": LlamaConfig(**_PLAIN, rope_parameters=_YARN),
    "mistral-window": MistralConfig(**_PLAIN, sliding_window=13),
    "qwen2": Qwen2Config(**_PLAIN),
    "qwen2-half-sliding": Qwen2Config(**_PLAIN, use_sliding_window=True, sliding_window=13, max_window_layers=1),
    "qwen3": Qwen3Config(**_PLAIN, head_dim=24),
    "qwen3-biased": Qwen3Config(**_PLAIN, head_dim=24, attention_bias=True),
    "mixtral": MixtralConfig(**_PLAIN, num_local_experts=5, num_experts_per_tok=2),
    "qwen3-moe": Qwen3MoeConfig(**_PLAIN, **_EXPERTS, head_dim=24, norm_topk_prob=True),
    "qwen3-moe-every-second": Qwen3MoeConfig(**_PLAIN, **_EXPERTS, head_dim=24, decoder_sparse_step=2),
    "deepseek-v2-lite": DeepseekV2Config(**_LATENT | {"q_lora_rank": None}, topk_method="greedy"),
    "deepseek-v2-groups": DeepseekV2Config(**_LATENT, topk_method="group_limited_greedy"),
    "deepseek-v2-yarn": DeepseekV2Config(
        **_LATENT, rope_parameters=_YARN | {"mscale": 0.707, "mscale_all_dim": 0.9}
    ),
    "deepseek-v2-biased": DeepseekV2Config(**_LATENT, attention_bias=True),
    "deepseek-v3": DeepseekV3Config(**_LATENT),
    "deepseek-v3-yarn": DeepseekV3Config(**_LATENT, rope_parameters=_YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}),
    "deepseek-v3-halves": DeepseekV3Config(**_LATENT | {"q_lora_rank": None}, rope_interleave=False),
    "gemma2": Gemma2Config(**_GEMMA, attn_logit_softcapping=3.0, final_logit_softcapping=2.0),
    "gemma2-uncapped": Gemma2Config(**_GEMMA, attn_logit_softcapping=None, final_logit_softcapping=None),
    "gemma3": Gemma3TextConfig(**_GEMMA, sliding_window_pattern=3, rope_parameters=_GEMMA3_ROPE),
    "gemma3-biased": Gemma3TextConfig(**_GEMMA, attention_bias=True, final_logit_softcapping=2.0),
    "gpt-oss": GptOssConfig(**_GPT_OSS, rope_parameters=_YARN | {"truncate": False}),
    "gpt-oss-unbiased-attention": GptOssConfig(**_GPT_OSS, attention_bias=False),
    "phi3": Phi3Config(**_PHI3),
    "phi3-window": Phi3Config(**_PHI3, sliding_window=13),
    "phi3-longrope": Phi3Config(
        **_PHI3 | _LONG_CONTEXT, rope_parameters=_LONGROPE | {"partial_rotary_factor": 0.75}
    ),
    "olmo2": Olmo2Config(**_PLAIN),
    "smollm3": SmolLM3Config(**_PLAIN | {"num_hidden_layers": 5}, pad_token_id=0),
    "smollm3-listed": SmolLM3Config(
        **_PLAIN, no_rope_layers=[0, 1, 0], use_sliding_window=True, sliding_window=13, pad_token_id=0
    ),
    "gpt2": GPT2Config(**_GPT2, n_inner=96),
    "opt": OPTConfig(**_OPT),
    "opt-unbiased": OPTConfig(**_OPT, enable_bias=False, activation_function="gelu"),
}  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """A folder as `save_pretrained` writes it, and the model that wrote it."""

    folder: Path
    model: PreTrainedModel

    def logits(self, token_ids: list[int]) -> Tensor:
        """[len(token_ids), vocab], computed at once and without a cache."""
        with torch.inference_mode():
            return self.model(torch.tensor([token_ids]), use_cache=False).logits[0]


def save_tiny(name: str, folder: Path) -> Reference:
    """The tiny model `name`, fp32, its weights drawn from a seed, saved into `folder`."""
    model = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor_name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(_drawn(tensor_name, tensor.shape, generator, 0.0 if name.startswith("gemma") else 1.0))
        model.tie_weights()
    model.save_pretrained(folder)
    return Reference(folder, model)


def _drawn(name: str, shape: torch.Size, generator: torch.Generator, norm: float) -> Tensor:
    """`norm` is the weight of a norm that leaves sizes as they are."""
    noise = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return noise * shape[-1] ** -0.5
    is_norm = name.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight"))
    return norm + 0.3 * noise if is_norm else 0.3 * noise
