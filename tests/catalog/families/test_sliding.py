"""Which layers have a window: the rules of the config classes in transformers 5.23."""

from __future__ import annotations

from typing import Any

import pytest

from kvtool.catalog.hf_config import model_from_config
from kvtool.catalog.model import ChunkedAttention, FullAttention, SharedAttention, SlidingAttention
from kvtool.system.errors import KvtoolError
from tests.catalog.data import LLAMA

LLAMA4 = {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 1}


def letters(model_type: str, **changes: object) -> str:
    """One letter a layer: Full, Sliding, Chunked or sHared; the window must be the one given where there is one."""
    values: dict[str, Any] = {**LLAMA, "model_type": model_type, **changes}
    model = model_from_config(values, id="test", source="config.json")
    names = {FullAttention: "F", SlidingAttention: "S", ChunkedAttention: "C", SharedAttention: "H"}
    return "".join(names[type(layer.cache)] for layer in model.layers)  # type: ignore[index]


def window(model_type: str, **changes: object) -> int:
    values: dict[str, Any] = {**LLAMA, "model_type": model_type, **changes}
    model = model_from_config(values, id="test", source="config.json")
    return next(layer.cache.window for layer in model.layers if isinstance(layer.cache, SlidingAttention))


@pytest.mark.parametrize(
    ("model_type", "changes", "layers"),
    [
        # Mistral: one window for all; absent takes the class's 4096, null is none.
        ("mistral", {}, "SSSS"),
        ("mistral", {"sliding_window": None}, "FFFF"),
        ("mistral", {"sliding_window": 8}, "SSSS"),
        ("mistral", {"sliding_window": 32768, "max_position_embeddings": 32768}, "FFFF"),
        ("mixtral", {}, "FFFF"),
        ("phi3", {"sliding_window": 2047, "max_position_embeddings": 4096}, "SSSS"),
        ("phi3", {"sliding_window": 262144, "max_position_embeddings": 131072}, "FFFF"),
        ("starcoder2", {"sliding_window": 8}, "SSSS"),
        # Qwen2: only with use_sliding_window, from max_window_layers on.
        ("qwen2", {"sliding_window": 8, "max_window_layers": 2}, "FFFF"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}, "FFSS"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 2}, "FFFF"),
        ("qwen3", {"head_dim": 16, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "SSSS"),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}, "SSSS"),
        # By turns.
        ("gemma2", {"head_dim": 16}, "SFSF"),
        ("gemma3_text", {"head_dim": 16, "num_hidden_layers": 7}, "SSSSSFS"),
        ("gemma3_text", {"head_dim": 16, "sliding_window_pattern": 2}, "SFSF"),
        ("cohere2", {}, "SSSF"),
        ("cohere2", {"sliding_window_pattern": 2}, "SFSF"),
        ("olmo3", {}, "SSSF"),
        ("gpt_oss", {"head_dim": 16}, "SFSF"),
        ("afmoe", {"head_dim": 16, "global_attn_every_n_layers": 2}, "SFSF"),
        ("olmo3", {"layer_types": ["full_attention", "sliding_attention"] * 2}, "FSFS"),
        # EXAONE 4: letters or a period; no window, no sliding layers. The last layer is full.
        ("exaone4", {"sliding_window": 8, "sliding_window_pattern": "LLG"}, "SSFF"),
        ("exaone4", {"sliding_window": 8, "sliding_window_pattern": 2}, "SFSF"),
        ("exaone4", {"sliding_window": None, "sliding_window_pattern": "LLLG"}, "FFFF"),
        ("smollm3", {"use_sliding_window": False, "sliding_window": 8}, "FFFF"),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 8}, "FFFS"),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 8, "no_rope_layers": [0, 1, 0, 1]}, "SFSF"),
        # Llama 4: chunked where positions rotate.
        ("llama4_text", LLAMA4, "CCCF"),
        ("llama4_text", {**LLAMA4, "no_rope_layers": [1, 0] * 2}, "CFCF"),
        ("llama4_text", {**LLAMA4, "attention_chunk_size": None}, "FFFF"),
        # Gemma 3n and 4: the last layers share; Gemma 4's last is full whatever its list says.
        ("gemma3n_text", {"head_dim": 16, "num_hidden_layers": 10, "num_kv_shared_layers": 3}, "SSSSFSSHHH"),
        ("gemma4_text", {"head_dim": 16, "num_hidden_layers": 7, "num_kv_shared_layers": 0}, "SSSSSFF"),
    ],
)  # fmt: skip
def test_which_layers_have_a_window(model_type: str, changes: dict[str, object], layers: str) -> None:
    assert letters(model_type, **changes) == layers


@pytest.mark.parametrize(
    ("model_type", "changes", "tokens"),
    [
        ("mistral", {}, 4096),
        ("gpt_oss", {"head_dim": 16}, 128),
        ("gemma3n_text", {"head_dim": 16, "num_kv_shared_layers": 0, "num_hidden_layers": 5}, 512),
        ("afmoe", {"head_dim": 16}, 1024),
        ("cohere2", {"sliding_window": 7}, 7),
    ],
)
def test_windows_default_to_their_classes(model_type: str, changes: dict[str, object], tokens: int) -> None:
    assert window(model_type, **changes) == tokens


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("olmo3", {"layer_types": ["full_attention"] * 3}, "'layer_types' has 3 items, but there are 4 layers"),
        ("olmo3", {"layer_types": ["warped_attention"] * 4}, "layer type 'warped_attention' is not known here"),
        ("olmo3", {"layer_types": [1, 2, 3, 4]}, "a list of names is needed"),
        ("olmo3", {"sliding_window": None}, "no 'sliding_window' is given"),
        ("olmo3", {"sliding_window": 0}, "'sliding_window' is 0: must be from 1"),
        ("mistral", {"layer_types": ["full_attention"] * 4}, "'layer_types' is not known for this architecture"),
        ("qwen2", {"use_sliding_window": True}, "says where"),
        ("llama4_text", {"head_dim": 16, "no_rope_layers": [1]}, "'no_rope_layers' has 1 items"),
        ("gemma3n_text", {"head_dim": 16, "num_kv_shared_layers": 4}, "must be from 0 to 3"),
        ("gemma3n_text", {"head_dim": 16, "num_hidden_layers": 6, "num_kv_shared_layers": 3}, "no layer to share with"),
        ("gemma4_text", {"head_dim": 16, "per_layer_config": {"0": {"head_dim": 8}}}, "does not override each full"),
        ("gemma4_text", {"head_dim": 16, "per_layer_config": {"03": {"window": 8}}}, "overrides 'window'"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(model_type: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(KvtoolError) as refused:
        letters(model_type, **changes)
    assert message in str(refused.value)


def test_gemma4_full_layers_have_sizes_of_their_own() -> None:
    """K and V are both stored, also with attention_k_eq_v; without it num_global_key_value_heads has no effect."""
    values = {**LLAMA, "model_type": "gemma4_text", "head_dim": 16, "num_global_key_value_heads": 1}
    last = model_from_config(values, id="t", source="t").layers[-1].cache
    assert last == FullAttention(kv_heads=2, k_head_dim=512, v_head_dim=512)
    values |= {"attention_k_eq_v": True, "global_head_dim": 64}
    last = model_from_config(values, id="t", source="t").layers[-1].cache
    assert last == FullAttention(kv_heads=1, k_head_dim=64, v_head_dim=64)
    values["per_layer_config"] = {"03": {"head_dim": 32, "num_key_value_heads": 4}}
    last = model_from_config(values, id="t", source="t").layers[-1].cache
    assert last == FullAttention(kv_heads=4, k_head_dim=32, v_head_dim=32)
