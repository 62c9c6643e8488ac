"""Models of public SGLang logs that are not in the catalogue, by hand from their configs."""

from __future__ import annotations

from kvtool.catalog.model import FullAttention, Layer, Model, SharedAttention, SlidingAttention


def mimo_v2_flash() -> Model:
    """XiaomiMiMo/MiMo-V2-Flash: 9 full and 39 sliding layers, 4 and 8 KV heads, K of 192 and V of 128."""
    full = Layer(cache=FullAttention(kv_heads=4, k_head_dim=192, v_head_dim=128))
    sliding = Layer(cache=SlidingAttention(kv_heads=8, k_head_dim=192, v_head_dim=128, window=128))
    layers = (full, *(sliding,) * 4, *(full, *(sliding,) * 5) * 7, full)
    return _model("XiaomiMiMo/MiMo-V2-Flash", "mimo_v2_flash", layers, num_heads=64)


def gemma_4_e4b() -> Model:
    """google/gemma-4-E4B-it: 42 layers, every sixth of them full; the last 18 share the K and V of earlier ones."""
    sliding = Layer(cache=SlidingAttention(kv_heads=2, k_head_dim=256, v_head_dim=256, window=512))
    full = Layer(cache=FullAttention(kv_heads=2, k_head_dim=512, v_head_dim=512))
    own = (*(sliding,) * 5, full) * 4
    shared_sliding, shared_full = (Layer(cache=SharedAttention(source_layer=source)) for source in (22, 23))
    return _model("google/gemma-4-E4B-it", "gemma4_text", own + (*(shared_sliding,) * 5, shared_full) * 3, num_heads=8)


def _model(id: str, architecture: str, layers: tuple[Layer, ...], num_heads: int) -> Model:
    return Model(
        id=id,
        source="by hand",
        architecture=architecture,
        attention="gqa",
        layers=layers,
        hidden_size=2560,
        vocab_size=262144,
        num_heads=num_heads,
        max_position_embeddings=131072,
        dtype="bfloat16",
    )
