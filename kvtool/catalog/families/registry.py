"""Which reader takes which `model_type`. A type that is not here is refused by name.

Defaults and key names are those of the config classes in transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from kvtool.catalog.families import (
    compressed,
    encoder_decoder,
    hybrid,
    latent,
    per_layer,
    plain,
    recurrent,
    sliding,
)
from kvtool.catalog.families.experts import experts, llama4_experts, nested_experts, periodic_experts
from kvtool.catalog.families.family import Family, Shape
from kvtool.catalog.fields import Fields
from kvtool.catalog.model import Layer

_KV = ("num_key_value_heads",)
_KV_DIM = ("num_key_value_heads", "head_dim")
_MLA = ("kv_lora_rank", "qk_rope_head_dim", "num_attention_heads")
_WINDOW_4K = {"sliding_window": 4096}
_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
_V3 = {"first_k_dense_replace": 3, "n_shared_experts": 1}


def _same(types: str, family: Family) -> dict[str, Family]:
    """Architectures that are read alike."""
    return dict.fromkeys(types.split(), family)


def _nested(*sizes: int | None, mlp: int, vocab: int) -> Mapping[str, object]:
    """The shape a config class has by default, in the order of `_SIZES`: a multimodal config leaves it unsaid."""
    given = {name: size for name, size in zip(_SIZES, sizes, strict=True) if size is not None}
    return {**given, "intermediate_size": mlp, "vocab_size": vocab}


def _untied(
    layers: Callable[[Fields, Shape], list[Layer]],
    required: tuple[str, ...] = (),
    defaults: Mapping[str, object] | None = None,
    nested: Mapping[str, object] | None = None,
) -> Family:
    """The commonest: experts where it has any, and an output head of its own."""
    return Family(
        layers=layers, experts=experts, required=required, tie=False, defaults=defaults or {}, nested=nested or {}
    )


_nth_full = sliding.every_nth_full
_PLAIN = Family(layers=plain.plain, experts=experts)
_FALCON = Family(layers=plain.falcon, tie=True, mlp_factor=4)
_LATENT = _untied(latent.mla, _MLA, {"first_k_dense_replace": 1, "n_shared_experts": 1})
_MAMBA1 = Family(layers=recurrent.mamba1, shape=recurrent.pure_shape)
_LISTED = Family(layers=sliding.listed, experts=experts, required=(*_KV, "layer_types"))

_FULL = {
    "llama": _untied(plain.plain, nested=_nested(32, 4096, 32, None, None, mlp=11008, vocab=32000)),
    **_same("aquila Yi xverse orion internlm internlm2 baichuan exaone hyperclovax", _PLAIN),
    **_same("granite granitemoe granitemoeshared nanochat", _PLAIN),
    **_same("hunyuan hunyuan_v1_dense hunyuan_v1_moe", replace(_PLAIN, layers=plain.cross_layer)),
    **_same("arcee apertus diffllama olmo olmo2 olmoe flex_olmo nemotron phi", _untied(plain.plain)),
    **_same("glm4_moe glm4v_text glm4v_moe_text deepseek minicpm", _untied(plain.plain, _KV)),
    **_same("bitnet ernie4_5_moe grok-1 jais2", replace(_PLAIN, required=_KV)),
    **_same("glm glm4 internlm3 helium seed_oss", _untied(plain.plain, _KV_DIM)),
    **_same("solar_open hy_v3 iquestcoder", _untied(plain.plain, _KV_DIM)),
    **_same("stablelm stablelm_epoch", _untied(plain.derived, _KV)),
    "minimax_m2": _untied(plain.softmax_only, _KV_DIM),
    "nemotron-nas": Family(layers=plain.searched_blocks, tie=False),
    "cohere": replace(_PLAIN, tie=True),
    "ernie4_5": replace(_PLAIN, tie=True, required=_KV_DIM),
    "gemma": Family(
        layers=plain.plain,
        required=_KV_DIM,
        tie=True,
        nested=_nested(28, 3072, 16, 16, 256, mlp=24576, vocab=256000),
    ),
    # Configs with names of their own for the same things.
    **_same("gpt2 bloom opt", Family(layers=plain.multi_head, tie=True, mlp_factor=4)),
    **_same("gptj codegen gpt_neox persimmon", Family(layers=plain.multi_head, tie=False, mlp_factor=4)),
    "phi-msft": Family(layers=plain.plain, tie=False, mlp_factor=4),
    "gpt_bigcode": Family(layers=plain.multi_query_flag, tie=True, mlp_factor=4),
    **_same("falcon RefinedWebModel RefinedWeb", _FALCON),
    **_same("chatglm qwen", Family(layers=plain.chatglm, tie=False)),
    "mpt": Family(layers=plain.attn_config, tie=True, mlp_factor=4),
    "dbrx": Family(layers=plain.attn_config, experts=nested_experts, tie=False),
}

_MISTRAL_SIZES = _nested(32, 4096, 32, 8, None, mlp=14336, vocab=32000)
_QWEN2_SIZES = _nested(32, 4096, 32, 32, None, mlp=22016, vocab=151936)
_QWEN3_SIZES = _nested(32, 4096, 32, 32, 128, mlp=22016, vocab=151936)
_SLIDING = {
    # One window for all layers, or for the upper ones.
    "mistral": _untied(sliding.one_window, _KV, _WINDOW_4K, _MISTRAL_SIZES),
    "mixtral": _untied(sliding.one_window, _KV),
    "ministral3": _untied(sliding.one_window, _KV_DIM, nested=_nested(34, 4096, 32, 8, 128, mlp=14336, vocab=131072)),
    **_same("phi3_v", _untied(sliding.one_window)),
    "phi3": _untied(sliding.one_window, nested=_nested(32, 3072, 32, None, None, mlp=8192, vocab=32064)),
    **_same("phimoe phi4_multimodal phi4mm", replace(_PLAIN, layers=sliding.one_window, required=_KV)),
    "starcoder2": Family(layers=sliding.one_window, required=_KV, tie=True),
    **_same(
        "qwen2 mimo qwen2_moe qwen2_vl qwen2_vl_text qwen2_5_vl qwen2_5_vl_text qwen2_5_omni_text",
        _untied(sliding.upper_layers, _KV, _WINDOW_4K, _QWEN2_SIZES),
    ),
    **_same("qwen3 qwen3_vl_text", _untied(sliding.upper_layers, _KV_DIM, _WINDOW_4K, _QWEN3_SIZES)),
    **_same("qwen3_moe qwen3_vl_moe_text qwen3_omni_moe_text", _untied(sliding.qwen3_moe, _KV, _WINDOW_4K)),
    # Sliding and full layers by turns.
    "gemma2": Family(
        layers=_nth_full(2),
        required=_KV_DIM,
        tie=True,
        defaults=_WINDOW_4K,
        nested=_nested(26, 2304, 8, 4, 256, mlp=9216, vocab=256000),
    ),
    "gemma3_text": Family(
        layers=_nth_full(6, "sliding_window_pattern"),
        required=_KV_DIM,
        tie=True,
        defaults=_WINDOW_4K,
        nested=_nested(26, 2304, 8, 4, 256, mlp=9216, vocab=262208),
    ),
    "gemma3n_text": Family(
        layers=sliding.gemma3n,
        required=_KV_DIM,
        tie=True,
        defaults={"sliding_window": 512, "num_kv_shared_layers": 15},
        nested=_nested(35, 2048, 8, 2, 256, mlp=16384, vocab=262400),
    ),
    "gemma4_text": Family(
        layers=sliding.gemma4,
        experts=experts,
        required=_KV_DIM,
        tie=True,
        defaults={"sliding_window": 512},
        nested=_nested(30, 2304, 8, 4, 256, mlp=9216, vocab=262144),
    ),
    "gemma4_unified_text": Family(
        layers=sliding.gemma4,
        experts=experts,
        required=_KV_DIM,
        tie=True,
        defaults={"sliding_window": 1024},
        nested=_nested(30, 2304, 8, 4, 256, mlp=9216, vocab=262144),
    ),
    **_same("mimo_v2_flash mimo_v2", _untied(per_layer.mimo_v2, (*_KV_DIM, "sliding_window"))),
    "cohere2": Family(
        layers=_nth_full(4, "sliding_window_pattern"),
        tie=True,
        defaults=_WINDOW_4K,
        nested=_nested(40, 8192, 64, None, None, mlp=22528, vocab=256000),
    ),
    "olmo3": _untied(_nth_full(4), defaults=_WINDOW_4K),
    "gpt_oss": _untied(_nth_full(2), _KV_DIM, {"sliding_window": 128}),
    "afmoe": _untied(_nth_full(4, "global_attn_every_n_layers"), ("head_dim",), {"sliding_window": 1024}),
    "exaone4": _untied(sliding.lettered, _KV, _WINDOW_4K),
    "smollm3": Family(layers=sliding.smollm3, required=_KV, tie=True),
    **_same("ministral granite_swa granitemoe_swa exaone_moe", _LISTED),
    **_same("cwm vaultgemma step3p7", replace(_LISTED, required=(*_KV_DIM, "layer_types"))),
    "llama4_text": Family(
        layers=sliding.llama4,
        experts=llama4_experts,
        required=_KV_DIM,
        tie=False,
        defaults={"attention_chunk_size": 8192},
        nested=_nested(48, 5120, 40, 8, 128, mlp=8192, vocab=202048),
    ),
}

_COMPRESSED = {
    **_same("glm4_moe_lite youtu axk1", _LATENT),
    "deepseek_v2": replace(_LATENT, defaults={"n_shared_experts": 2}),
    **_same("deepseek_v3 kimi_k2", replace(_LATENT, defaults=_V3)),
    "minicpm3": replace(_LATENT, tie=True, defaults={}),
    "longcat_flash": replace(_LATENT, layers=latent.two_mla, defaults={}),
    **_same("deepseek_v32 glm_moe_dsa", replace(_LATENT, layers=latent.indexed_mla, defaults=_V3)),
    "minimax_m3": _untied(latent.block_sparse, _KV_DIM),
    "mistral4": replace(_LATENT, defaults={"first_k_dense_replace": 0, "n_shared_experts": 1}),
    "deepseek_v4": _untied(compressed.deepseek_v4, ("head_dim", "num_attention_heads"), {"sliding_window": 128}),
}

_BART = Family(
    layers=encoder_decoder.every_layer_crosses, shape=encoder_decoder.decoder_shape, tie=True, encoder_decoder=True
)
_T5 = Family(layers=encoder_decoder.t5, shape=encoder_decoder.t5_shape, tie=True, encoder_decoder=True)
_ENCODER_DECODER = {
    "whisper": replace(_BART, defaults={"max_source_positions": 1500, "max_target_positions": 448}),
    **_same("bart mbart marian pegasus blenderbot m2m_100 plbart", _BART),
    **_same("t5 mt5 umt5", _T5),
    "mllama_text_model": Family(layers=encoder_decoder.mllama, required=_KV, tie=False),
}

_RECURRENT = {
    **_same("qwen3_next qwen3_5_text qwen3_5_moe_text", _untied(recurrent.gated_delta_net, _KV_DIM)),
    "kimi_linear": _untied(recurrent.kimi_linear, _MLA),
    **_same("minimax minimax_text_01 minimax_m1", _untied(recurrent.lightning, _KV)),
    **_same("mamba falcon_mamba", _MAMBA1),
    "mamba2": replace(_MAMBA1, layers=recurrent.mamba2),
    "jamba": replace(_untied(recurrent.jamba, _KV), experts=periodic_experts),
    "bamba": _untied(recurrent.bamba, _KV),
    "falcon_h1": _untied(hybrid.falcon_h1, _KV),
    "zamba2": Family(layers=hybrid.zamba2, tie=True),
    "recurrent_gemma": Family(layers=hybrid.recurrent_gemma, tie=True, required=("attention_window_size",)),
    "rwkv7": Family(layers=hybrid.rwkv7, shape=hybrid.rwkv7_shape, tie=False),
    "openelm": Family(layers=per_layer.openelm, shape=per_layer.openelm_shape, tie=True),
    "granitemoehybrid": replace(_PLAIN, layers=recurrent.granite_hybrid),
    "nemotron_h": replace(
        _untied(recurrent.nemotron_h, _KV, {"conv_kernel": 4}), shape=recurrent.nemotron_shape
    ),
    **_same("lfm2 lfm2_moe", replace(_PLAIN, layers=recurrent.short_convolution, required=_KV)),
}  # fmt: skip

FAMILIES: dict[str, Family] = {**_FULL, **_SLIDING, **_COMPRESSED, **_ENCODER_DECODER, **_RECURRENT}
