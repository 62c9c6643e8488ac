"""A Llama of two small layers, run with random weights: enough to drive every part of the benchmark in a second."""

from __future__ import annotations

from kvtool.catalog.decoder import Decoder
from kvtool.catalog.model import FullAttention, Layer, Model
from kvtool.engine.config import EngineConfig
from kvtool.engine.loaded import LoadedModel

TINY = Model(
    id="tiny-llama",
    source="made for tests",
    architecture="llama",
    attention="gqa",
    layers=(Layer(cache=FullAttention(kv_heads=2, k_head_dim=16, v_head_dim=16)),) * 2,
    hidden_size=64,
    vocab_size=512,
    num_heads=4,
    intermediate_size=128,
    tie_word_embeddings=True,
    max_position_embeddings=1024,
    dtype="bf16",
    decoder=Decoder(family="llama", exact=True),
)


def config(**given: object) -> EngineConfig:
    return EngineConfig(device="cpu", dtype="fp32", **given)


def loaded(**given: object) -> LoadedModel:
    return LoadedModel(TINY, config(**given), max_positions=512)
