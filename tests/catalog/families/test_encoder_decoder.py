from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from kvtool.catalog.hf_config import model_from_config
from kvtool.catalog.model import CrossAttention, FullAttention, Layer, Model
from kvtool.system.errors import KvtoolError
from tests.catalog.data import config

MLLAMA: dict[str, Any] = {  # Llama-3.2-11B-Vision, as transformers' config classes and the model card give it
    "model_type": "mllama",
    "text_config": {
        "model_type": "mllama_text_model",
        "num_hidden_layers": 40,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
    },
    "vision_config": {"model_type": "mllama_vision_model", "image_size": 560, "patch_size": 14, "max_num_tiles": 4},
}
BART = {
    "model_type": "bart",
    "d_model": 1024,
    "encoder_layers": 12,
    "decoder_layers": 6,
    "decoder_attention_heads": 16,
    "encoder_attention_heads": 8,
    "max_position_embeddings": 1024,
    "vocab_size": 50265,
    "is_encoder_decoder": True,
}
T5 = {
    "model_type": "t5",
    "d_model": 512,
    "num_layers": 6,
    "num_decoder_layers": 8,
    "num_heads": 8,
    "d_kv": 128,
    "n_positions": 512,
    "vocab_size": 32128,
    "is_encoder_decoder": True,
}


def read(values: dict[str, Any]) -> Model:
    return model_from_config(values, id="test", source="test")


def test_whisper() -> None:
    model = read(config("whisper-large-v3"))
    layer = Layer(
        cache=FullAttention(kv_heads=20, k_head_dim=64, v_head_dim=64),
        cross=CrossAttention(kv_heads=20, k_head_dim=64, v_head_dim=64, encoder_tokens=1500),
    )
    assert model.layers == (layer,) * 32
    assert (model.max_position_embeddings, model.attention) == (448, "mha+cross")


def test_mllama_layers_set_apart_see_one_image_of_four_tiles() -> None:
    """Each tile has (560 / 14)^2 patches and a class token: 4 x 1601 = 6404."""
    model = read(MLLAMA)
    cross = CrossAttention(kv_heads=8, k_head_dim=128, v_head_dim=128, encoder_tokens=6404)
    assert [at for at, layer in enumerate(model.layers) if layer.cache == cross] == [3, 8, 13, 18, 23, 28, 33, 38]
    assert Counter(type(layer.cache) for layer in model.layers) == {FullAttention: 32, CrossAttention: 8}
    assert all(layer.cross is None for layer in model.layers)


def test_bart_counts_the_decoders_own_layers_and_heads() -> None:
    model = read(BART)
    assert (model.num_layers, model.num_heads, model.hidden_size) == (6, 16, 1024)
    cross = model.layers[0].cross
    assert cross is not None
    assert (cross.kv_heads, cross.k_head_dim, cross.encoder_tokens) == (16, 64, 1024)


def test_t5_has_heads_of_d_kv() -> None:
    model = read(T5)
    assert (model.num_layers, model.num_heads) == (8, 8)
    assert model.layers[0].cache == FullAttention(kv_heads=8, k_head_dim=128, v_head_dim=128)
    assert read({**T5, "num_decoder_layers": None}).num_layers == 6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**MLLAMA, "vision_config": None}, "field 'vision_config' is missing: it says how many tokens an image has"),
        (
            {**MLLAMA["text_config"], "cross_attention_layers": [40]},
            "'cross_attention_layers' is .40.: a list of whole",
        ),
        ({**T5, "n_positions": None}, "field 'n_positions' is missing"),
        ({**BART, "decoder_layers": None}, "field 'decoder_layers' is missing"),
        (
            {**BART, "model_type": "llama"},
            "encoder-decoder of this architecture is not known|'num_hidden_layers' is miss",
        ),
        ({"model_type": "bert"}, "'bert' is an encoder without a decoder: it keeps no KV cache"),
    ],
)
def test_what_is_missing_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        read(values)
