"""KV heads counted layer by layer, or apart for layers with a window."""

from __future__ import annotations

from typing import Any

import pytest

from kvtool.catalog.hf_config import model_from_config
from kvtool.catalog.model import FullAttention, Model, SlidingAttention
from kvtool.system.errors import KvtoolError
from tests.catalog.data import LLAMA, config


def read(values: dict[str, Any]) -> Model:
    return model_from_config(values, id="x", source="config.json")


def test_openelm_has_63_kv_heads_in_all() -> None:
    """Its 16 layers have 3, 4 or 5: 63 x 64 x 2 values of fp32 are 32,256 B a token."""
    model = read(config("OpenELM-270M"))
    heads = [layer.cache for layer in model.layers if isinstance(layer.cache, FullAttention)]
    assert sum(cache.kv_heads * (cache.k_head_dim + cache.v_head_dim) * 4 for cache in heads) == 32_256
    assert (model.num_heads, model.dtype, model.max_position_embeddings) == (20, "float32", 2048)


def test_a_list_of_kv_heads_is_one_number_a_layer() -> None:
    model = read({**LLAMA, "num_key_value_heads": [4, 2, 0, 1]})
    assert [layer.cache and layer.cache.kv_heads for layer in model.layers] == [4, 2, None, 1]  # type: ignore[union-attr]


def test_mimo_v2_has_other_heads_where_it_has_a_window() -> None:
    model = read(config("MiMo-V2-Flash"))
    assert model.layers[0].cache == FullAttention(kv_heads=4, k_head_dim=192, v_head_dim=128)
    assert model.layers[1].cache == SlidingAttention(kv_heads=8, k_head_dim=192, v_head_dim=128, window=128)
    assert sum(isinstance(layer.cache, SlidingAttention) for layer in model.layers) == 39


def test_gemma_4_unified_is_read_as_gemma_4() -> None:
    """40 layers of 8 x 256 with a window of 1,024, 8 full ones of 1 x 512."""
    model = read(config("gemma-4-12B-it-w4a16"))
    kinds = {layer.cache for layer in model.layers}
    assert kinds == {
        SlidingAttention(kv_heads=8, k_head_dim=256, v_head_dim=256, window=1024),
        FullAttention(kv_heads=1, k_head_dim=512, v_head_dim=512),
    }


def test_a_class_that_is_known_goes_before_a_name_that_is_not() -> None:
    """DeepSeek's own V4 calls itself deepseek_ref and has V4's class, which engines go by."""
    values = {**config("DeepSeek-V4-Flash"), "model_type": "deepseek_ref"}
    values["architectures"] = ["DeepseekV4ForCausalLM"]
    assert read(values).architecture == "deepseek_v4"


def test_mla_without_v_head_dim_has_a_cache_and_no_count_of_weights() -> None:
    from kvtool.sizing.params import count_params

    values = config("DeepSeek-V3.2")
    values.pop("v_head_dim")
    model = read(values)
    assert model.layers == tuple(model.layers)
    assert count_params(model) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {**config("OpenELM-270M"), "num_kv_heads": [3] * 5 + [4] * 7 + [5] * 3 + [7]},
            "layer 15: 20 query heads do not divide among 7",
        ),
        ({**config("OpenELM-270M"), "num_query_heads": None}, "'num_query_heads' is missing"),
        ({**LLAMA, "num_key_value_heads": [4, 2]}, "has 2 items, but there are 4 layers"),
        ({**LLAMA, "num_key_value_heads": [4, 2, 3, 1]}, "4 attention heads do not divide among 3"),
        ({**config("MiMo-V2-Flash"), "hybrid_layer_pattern": None}, "'hybrid_layer_pattern' is missing"),
    ],
)
def test_lists_that_do_not_hold_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        read(values)
