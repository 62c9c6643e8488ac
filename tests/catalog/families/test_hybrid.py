"""Layers that hold attention and a state at once, and recurrences of one architecture only."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from kvtool.catalog.hf_config import model_from_config
from kvtool.catalog.model import FullAttention, Mamba2, Model, OtherState, SlidingAttention
from kvtool.system.errors import KvtoolError
from tests.catalog.data import config

# Defaults of transformers' classes (5.23): Zamba2-2.7B, RecurrentGemma-2B.
ZAMBA2 = {
    "model_type": "zamba2", "num_hidden_layers": 4, "hidden_size": 2560, "num_attention_heads": 32, "vocab_size": 32000,
    "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "mamba_d_state": 64, "mamba_d_conv": 4,
    "mamba_expand": 2, "mamba_ngroups": 1, "n_mamba_heads": 8, "num_mem_blocks": 1, "use_mem_rope": True,
    "hybrid_layer_ids": [1, 3], "kv_channels": 80, "num_query_groups": 32, "attention_hidden_size": 5120,
}  # fmt: skip
RECURRENT_GEMMA = {
    "model_type": "recurrent_gemma", "num_hidden_layers": 26, "hidden_size": 2560, "num_attention_heads": 10,
    "num_key_value_heads": 1, "vocab_size": 256000, "lru_width": 2560, "attention_window_size": 2048,
    "conv1d_width": 4, "block_types": ["recurrent", "recurrent", "attention"],
}  # fmt: skip
RWKV7 = {
    "model_type": "rwkv7", "num_hidden_layers": 24, "hidden_size": 2048, "head_dim": 64, "vocab_size": 65536,
    "max_position_embeddings": 2048, "value_dim": [2048] * 24, "attn": None, "decay_low_rank_dim": 96,
}  # fmt: skip


def read(values: dict[str, Any]) -> Model:
    return model_from_config(values, id="x", source="config.json")


def kinds(model: Model) -> Counter[str]:
    return Counter(type(layer.cache).__name__ for layer in model.layers)


def test_falcon_h1_has_attention_and_a_state_in_each_layer() -> None:
    """44 layers: 44 x 2 x 128 x 2 values a token, and as many states of 24 heads x 128 x 256."""
    model = read(config("Falcon-H1-7B-Instruct"))
    assert kinds(model) == {"FullAttention": 44, "Mamba2": 44}
    assert model.layers[0].cache == FullAttention(kv_heads=2, k_head_dim=128, v_head_dim=128)
    assert model.layers[1].cache == Mamba2(heads=24, head_dim=128, state_dim=256, groups=1, conv_kernel=4)


def test_zamba2_runs_a_shared_block_with_a_cache_of_its_own_each_time() -> None:
    model = read(ZAMBA2)
    assert kinds(model) == {"FullAttention": 2, "Mamba2": 4}
    assert model.layers[1].cache == FullAttention(kv_heads=32, k_head_dim=160, v_head_dim=160)
    assert model.layers[0].cache == Mamba2(heads=8, head_dim=640, state_dim=64, groups=1, conv_kernel=4)


def test_recurrent_gemma_repeats_its_blocks() -> None:
    model = read(RECURRENT_GEMMA)
    assert kinds(model) == {"OtherState": 18, "SlidingAttention": 8}
    assert model.layers[2].cache == SlidingAttention(kv_heads=1, k_head_dim=256, v_head_dim=256, window=2048)
    assert model.layers[0].cache == OtherState(recurrent_elements=2560, conv_elements=3 * 2560)


def test_rwkv7_keeps_a_matrix_a_head_and_two_inputs() -> None:
    model = read(RWKV7)
    assert kinds(model) == {"OtherState": 24}
    assert model.layers[0].cache == OtherState(recurrent_elements=32 * 64 * 64, conv_elements=2 * 2048)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**ZAMBA2, "layers_block_type": ["mamba", "attn", "mamba", "mamba"]}, "layer type 'attn' is not known"),
        ({**ZAMBA2, "layers_block_type": None}, "'layers_block_type' is missing"),
        ({**ZAMBA2, "mamba_headdim": 64}, "8 state heads of 64 are not the 5120 channels"),
        ({**RECURRENT_GEMMA, "block_types": ["recurrent", "conv"]}, "'block_types' is missing, or names blocks"),
        ({**RWKV7, "attn": {"layers": [1]}}, "layers of attention among RWKV's are not known"),
        ({**RWKV7, "head_dim": 60}, "does not divide into heads of 60"),
        ({**config("Falcon-H1-7B-Instruct"), "attn_layer_indices": [1]}, "'attn_layer_indices' is set"),
    ],
)
def test_what_is_not_known_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        read(values)
