"""Multimodal configs, and the text model that each has where its `text_config` does not name one."""

from __future__ import annotations

_BY_TEXT_MODEL = {
    "llama": "llava llava_next llava_next_video video_llava vipllava idefics3 smolvlm janus deepseek_vl "
    "deepseek_vl_hybrid perception_lm glmasr voxtral",
    "mistral": "mistral3 idefics2 pixtral",
    "qwen2": "llava_onevision got_ocr2 internvl ovis2 qwen2_audio fast_vlm video_llama_3 audioflamingo3 "
    "musicflamingo pp_chart2table",
    "qwen3": "qwen3_asr lighton_ocr qianfan_ocr fun_asr_nano",
    "cohere2": "aya_vision cohere2_vision",
    "granite": "granite_speech granite_speech_plus",
    "deepseek_v3": "kimi_vl kimi_k25",
    "gemma3_text": "gemma3 shieldgemma2",
    "gemma3n_text": "gemma3n",
    "gemma4_text": "gemma4",
    "gemma4_unified_text": "gemma4_unified",
    "gemma": "paligemma",
    "llama4_text": "llama4",
    "mllama_text_model": "mllama",
    "persimmon": "fuyu",
    "glm4v_text": "glm4v",
    "glm4v_moe_text": "glm4v_moe",
    "qwen2_vl_text": "qwen2_vl",
    "qwen2_5_vl_text": "qwen2_5_vl",
    "qwen2_5_omni_text": "qwen2_5_omni_thinker",
    "qwen3_omni_moe_text": "qwen3_omni_moe_thinker",
    "qwen3_vl_text": "qwen3_vl",
    "qwen3_vl_moe_text": "qwen3_vl_moe",
    "qwen3_5_text": "qwen3_5",
    "qwen3_5_moe_text": "qwen3_5_moe",
    "kimi_linear": "kimi_k3",
    "lfm2": "lfm2_vl",
    "nemotron_h": "nemotron_h_omni",
    "opt": "blip-2",
    "exaone4": "exaone4_5",
    "minimax_m3": "minimax_m3_vl",
}
_NAMELESS = ("internvl_chat", "deepseek_vl_v2", "multi_modality", "qwen2_5_omni", "qwen3_omni_moe")

WRAPPERS: dict[str, str | None] = {
    wrapper: text for text, wrappers in _BY_TEXT_MODEL.items() for wrapper in wrappers.split()
} | dict.fromkeys(_NAMELESS)
