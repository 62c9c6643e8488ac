"""Which reader takes which `model_type`, and which multimodal configs wrap which text model.

Defaults and key names are those of the config classes in transformers 5.23; a type that is not here is refused by name.
"""

from __future__ import annotations

from kvtool.catalog.families import latent, plain, recurrent, sliding
from kvtool.catalog.families.experts import experts, llama4_experts, nested_experts, periodic_experts
from kvtool.catalog.families.family import Family

_KV = ("num_key_value_heads",)
_KV_DIM = ("num_key_value_heads", "head_dim")
_MLA = ("kv_lora_rank", "qk_rope_head_dim", "num_attention_heads")
_4K = {"sliding_window": 4096}


def _nested(
    layers: int, hidden: int, heads: int, kv_heads: int | None, head_dim: int | None, mlp: int, vocab: int
) -> dict[str, object]:
    """The shape a config class has by default, which a multimodal config leaves unsaid."""
    sizes = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": mlp,
        "vocab_size": vocab,
    }
    return {name: size for name, size in sizes.items() if size is not None}


_LLAMA = Family(layers=plain.plain, tie=False, nested=_nested(32, 4096, 32, None, None, 11008, 32000))
_PLAIN = Family(layers=plain.plain, experts=experts)
_PLAIN_KV = Family(layers=plain.plain, experts=experts, required=_KV, tie=False)
_PLAIN_KV_DIM = Family(layers=plain.plain, experts=experts, required=_KV_DIM, tie=False)
_UNTIED = Family(layers=plain.plain, experts=experts, tie=False)
_TIED = Family(layers=plain.plain, experts=experts, tie=True)
_OLD_UNTIED = Family(layers=plain.multi_head, tie=False, mlp_factor=4)
_OLD_TIED = Family(layers=plain.multi_head, tie=True, mlp_factor=4)
_MISTRAL_SIZES = _nested(32, 4096, 32, 8, None, 14336, 32000)
_QWEN2 = Family(
    layers=sliding.upper_layers,
    experts=experts,
    required=_KV,
    tie=False,
    defaults=_4K,
    nested=_nested(32, 4096, 32, 32, None, 22016, 151936),
)
_QWEN3 = Family(
    layers=sliding.upper_layers,
    experts=experts,
    required=_KV_DIM,
    tie=False,
    defaults=_4K,
    nested=_nested(32, 4096, 32, 32, 128, 22016, 151936),
)
_QWEN3_MOE = Family(layers=sliding.upper_layers, experts=experts, required=_KV, tie=False, defaults=_4K)
_GDN = Family(layers=recurrent.gated_delta_net, experts=experts, required=_KV_DIM, tie=False)
_LATENT = Family(layers=latent.mla, experts=experts, required=_MLA, tie=False)
_INDEXED = Family(layers=latent.indexed_mla, experts=experts, required=_MLA, tie=False)
_GEMMA4 = Family(
    layers=sliding.gemma4,
    experts=experts,
    required=_KV_DIM,
    tie=True,
    defaults={"sliding_window": 512},
    nested=_nested(30, 2304, 8, 4, 256, 9216, 262144),
)

FAMILIES: dict[str, Family] = {
    # Every layer full, grouped by num_key_value_heads.
    "llama": _LLAMA,
    **dict.fromkeys(("aquila", "Yi", "xverse", "orion", "internlm", "internlm2", "baichuan", "exaone", "jais2", "hyperclovax"), _PLAIN),
    **dict.fromkeys(("arcee", "apertus", "diffllama", "olmo", "olmo2", "olmoe", "flex_olmo", "nemotron", "iquestcoder"), _UNTIED),
    **dict.fromkeys(("granite", "granitemoe", "granitemoeshared", "phi", "hunyuan_v1_dense", "hunyuan_v1_moe", "nanochat", "bitnet"), _PLAIN),
    **dict.fromkeys(("cohere", "ernie4_5_moe"), _TIED),
    **dict.fromkeys(("mimo", "stablelm", "glm4_moe", "glm4v_moe_text", "deepseek", "minicpm", "grok-1"), _PLAIN_KV),
    **dict.fromkeys(("glm", "glm4", "glm4v_text", "internlm3", "helium", "seed_oss", "minimax_m2", "solar_open", "hy_v3"), _PLAIN_KV_DIM),
    "ernie4_5": Family(layers=plain.plain, required=_KV_DIM, tie=True),
    "gemma": Family(layers=plain.plain, required=_KV_DIM, tie=True, nested=_nested(28, 3072, 16, 16, 256, 24576, 256000)),
    # Older configs with names of their own.
    **dict.fromkeys(("gpt2", "bloom", "opt"), _OLD_TIED),
    **dict.fromkeys(("gptj", "codegen", "gpt_neox", "gpt_neox_japanese", "persimmon"), _OLD_UNTIED),
    "phi-msft": Family(layers=plain.plain, tie=False, mlp_factor=4),
    "gpt_bigcode": Family(layers=plain.multi_query_flag, tie=True, mlp_factor=4),
    "falcon": Family(layers=plain.falcon, tie=True, mlp_factor=4),
    "RefinedWebModel": Family(layers=plain.falcon, tie=True, mlp_factor=4),
    "RefinedWeb": Family(layers=plain.falcon, tie=True, mlp_factor=4),
    "chatglm": Family(layers=plain.chatglm, tie=False),
    "mpt": Family(layers=plain.attn_config, tie=True, mlp_factor=4),
    "dbrx": Family(layers=plain.attn_config, experts=nested_experts, tie=False),
    # One window for all layers, or for the upper ones.
    "mistral": Family(layers=sliding.one_window, required=_KV, tie=False, defaults=_4K, nested=_MISTRAL_SIZES),
    "mixtral": Family(layers=sliding.one_window, experts=experts, required=_KV, tie=False),
    "ministral3": Family(layers=sliding.one_window, required=_KV_DIM, tie=False, nested=_nested(34, 4096, 32, 8, 128, 14336, 131072)),
    "phi3": Family(layers=sliding.one_window, tie=False, nested=_nested(32, 3072, 32, None, None, 8192, 32064)),
    "phimoe": Family(layers=sliding.one_window, experts=experts, required=_KV, tie=False),
    "starcoder2": Family(layers=sliding.one_window, required=_KV, tie=True),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text", "qwen2_5_omni_text"), _QWEN2),
    **dict.fromkeys(("qwen3", "qwen3_vl_text"), _QWEN3),
    **dict.fromkeys(("qwen3_moe", "qwen3_vl_moe_text", "qwen3_omni_moe_text"), _QWEN3_MOE),
    # Sliding and full layers by turns.
    "gemma2": Family(
        layers=sliding.every_nth_full("sliding_window_pattern", 2), required=_KV_DIM, tie=True, defaults=_4K,
        nested=_nested(26, 2304, 8, 4, 256, 9216, 256000),
    ),
    "gemma3_text": Family(
        layers=sliding.every_nth_full("sliding_window_pattern", 6), required=_KV_DIM, tie=True, defaults=_4K,
        nested=_nested(26, 2304, 8, 4, 256, 9216, 262208),
    ),
    "gemma3n_text": Family(
        layers=sliding.gemma3n, required=_KV_DIM, tie=True, defaults={"sliding_window": 512, "num_kv_shared_layers": 15},
        nested=_nested(35, 2048, 8, 2, 256, 16384, 262400),
    ),
    "gemma4_text": _GEMMA4,
    "cohere2": Family(
        layers=sliding.every_nth_full("sliding_window_pattern", 4), tie=True, defaults=_4K,
        nested=_nested(40, 8192, 64, None, None, 22528, 256000),
    ),
    "olmo3": Family(layers=sliding.every_nth_full("sliding_window_pattern", 4), tie=False, defaults=_4K),
    "gpt_oss": Family(
        layers=sliding.every_nth_full("sliding_window_pattern", 2), experts=experts, required=_KV_DIM, tie=False,
        defaults={"sliding_window": 128},
    ),
    "afmoe": Family(
        layers=sliding.every_nth_full("global_attn_every_n_layers", 4), experts=experts, required=("head_dim",), tie=False,
        defaults={"sliding_window": 1024},
    ),
    "exaone4": Family(layers=sliding.lettered, required=_KV, tie=False, defaults=_4K),
    "smollm3": Family(layers=sliding.smollm3, required=_KV, tie=True),
    **dict.fromkeys(("ministral", "cwm", "granite_swa", "granitemoe_swa", "vaultgemma", "exaone_moe"),
                    Family(layers=sliding.listed, experts=experts, required=("layer_types",))),
    "llama4_text": Family(
        layers=sliding.llama4, experts=llama4_experts, required=_KV_DIM, tie=False, defaults={"attention_chunk_size": 8192},
        nested=_nested(48, 5120, 40, 8, 128, 8192, 202048),
    ),
    # A latent for each token.
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "kimi_k2", "glm4_moe_lite", "youtu", "axk1"), _LATENT),
    "minicpm3": Family(layers=latent.mla, required=_MLA, tie=True),
    "longcat_flash": Family(layers=latent.two_mla, experts=experts, required=_MLA, tie=False),
    **dict.fromkeys(("deepseek_v32", "glm_moe_dsa"), _INDEXED),
    "minimax_m3": Family(layers=latent.block_sparse, experts=experts, required=_KV_DIM, tie=False),
    # Layers with a state of constant size.
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), _GDN),
    "kimi_linear": Family(layers=recurrent.kimi_linear, experts=experts, required=_MLA, tie=False),
    "minimax": Family(layers=recurrent.lightning, experts=experts, required=_KV, tie=False),
    "minimax_text_01": Family(layers=recurrent.lightning, experts=experts, required=_KV, tie=False),
    **dict.fromkeys(("mamba", "falcon_mamba"), Family(layers=recurrent.mamba1, shape=recurrent.pure_shape)),
    "mamba2": Family(layers=recurrent.mamba2, shape=recurrent.pure_shape),
    "jamba": Family(layers=recurrent.jamba, experts=periodic_experts, required=_KV, tie=False),
    "bamba": Family(layers=recurrent.bamba, required=_KV, tie=False),
    "granitemoehybrid": Family(layers=recurrent.granite_hybrid, experts=experts),
    "nemotron_h": Family(
        layers=recurrent.nemotron_h, shape=recurrent.nemotron_shape, experts=experts, required=_KV, tie=False,
        defaults={"conv_kernel": 4},
    ),
    **dict.fromkeys(("lfm2", "lfm2_moe"), Family(layers=recurrent.short_convolution, experts=experts, required=_KV)),
}  # fmt: skip

# Multimodal configs, and the text model each has where its text_config does not name one.
WRAPPERS: dict[str, str | None] = {
    **dict.fromkeys(
        ("llava", "llava_next", "llava_next_video", "video_llava", "vipllava", "idefics3", "smolvlm"), "llama"
    ),
    **dict.fromkeys(("janus", "deepseek_vl", "deepseek_vl_hybrid", "perception_lm", "glmasr", "voxtral"), "llama"),
    **dict.fromkeys(("mistral3", "idefics2", "pixtral"), "mistral"),
    **dict.fromkeys(
        ("llava_onevision", "got_ocr2", "internvl", "ovis2", "qwen2_audio", "fast_vlm", "video_llama_3"), "qwen2"
    ),
    **dict.fromkeys(("audioflamingo3", "musicflamingo", "vibevoice", "vibevoice_asr", "pp_chart2table"), "qwen2"),
    **dict.fromkeys(("qwen3_asr", "lighton_ocr", "qianfan_ocr", "fun_asr_nano"), "qwen3"),
    **dict.fromkeys(("aya_vision", "cohere2_vision"), "cohere2"),
    **dict.fromkeys(("granite_speech", "granite_speech_plus"), "granite"),
    **dict.fromkeys(("internvl_chat", "deepseek_vl_v2", "multi_modality", "llava_qwen"), None),
    "gemma3": "gemma3_text",
    "shieldgemma2": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "paligemma": "gemma",
    "llama4": "llama4_text",
    "fuyu": "persimmon",
    "glm4v": "glm4v_text",
    "glm4v_moe": "glm4v_moe_text",
    "qwen2_vl": "qwen2_vl_text",
    "qwen2_5_vl": "qwen2_5_vl_text",
    **dict.fromkeys(("qwen2_5_omni", "qwen3_omni_moe"), None),
    "qwen2_5_omni_thinker": "qwen2_5_omni_text",
    "qwen3_omni_moe_thinker": "qwen3_omni_moe_text",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "kimi_vl": "deepseek_v3",
    "kimi_k25": "deepseek_v3",
    "kimi_k3": "kimi_linear",
    "lfm2_vl": "lfm2",
    "nemotron_h_omni": "nemotron_h",
    "blip-2": "opt",
    "exaone4_5": "exaone4",
}
