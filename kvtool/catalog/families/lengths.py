"""The longest context of configs that leave it out: the default of transformers' class for that model_type (5.23)."""

from __future__ import annotations

_TYPES_OF_LENGTH = {
    1024: "bart gpt2 gpt_bigcode m2m_100 marian mbart pegasus plbart",
    2048: (
        "bitnet codegen dbrx deepseek_v2 diffllama exaone4 exaone_moe falcon gpt_neox gptj granite granitemoe "
        "granitemoe_swa granitemoehybrid granitemoeshared hunyuan_v1_dense hunyuan_v1_moe hyperclovax llama mpt "
        "nanochat olmo olmo2 olmo3 opt phi"
    ),
    4096: "arcee deepseek_v3 flex_olmo helium nemotron nemotron_h olmoe phi3 stablelm starcoder2",
    8192: "cohere cohere2 gemma gemma2 granite_swa jais2 vaultgemma",
    16384: "afmoe persimmon",
    32768: (
        "axk1 gemma3n_text glm4v_text internlm3 minicpm3 qwen2 qwen2_5_omni_text qwen2_5_vl_text qwen2_moe "
        "qwen2_vl_text qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next qwen3_omni_moe_text smollm3"
    ),
    65536: "apertus glm4v_moe_text",
    128000: "lfm2 lfm2_moe qwen3_vl_moe_text qwen3_vl_text",
    131072: (
        "cwm ernie4_5 ernie4_5_moe gemma3_text gemma4_text glm glm4 glm4_moe gpt_oss hy_v3 iquestcoder llama4_text "
        "longcat_flash minimax ministral mistral mixtral mllama_text_model phi4_multimodal phimoe solar_open youtu"
    ),
    163840: "deepseek_v32",
    196608: "minimax_m2",
    202752: "glm4_moe_lite glm_moe_dsa",
    262144: "bamba jamba ministral3",
    524288: "seed_oss",
    1048576: "deepseek_v4 kimi_linear",
}

DEFAULT_LENGTHS = {name: length for length, names in _TYPES_OF_LENGTH.items() for name in names.split()}
