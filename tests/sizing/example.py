"""Small hand-made models of each attention kind for the tests of sizing."""

from __future__ import annotations

from dataclasses import replace

from kvtool.catalog.gpus import Gpu
from kvtool.catalog.model import (
    ChunkedAttention,
    CompressedAttention,
    CrossAttention,
    FullAttention,
    GatedDeltaNet,
    Indexer,
    LatentAttention,
    Layer,
    Mamba2,
    Model,
    Moe,
    SharedAttention,
    SlidingAttention,
)

LLAMA_8B = Model(
    id="llama-8b",
    source="by hand",
    architecture="llama",
    attention="gqa",
    layers=(Layer(cache=FullAttention(kv_heads=8, k_head_dim=128, v_head_dim=128)),) * 32,
    hidden_size=4096,
    vocab_size=128256,
    num_heads=32,
    intermediate_size=14336,
    tie_word_embeddings=False,
    max_position_embeddings=131072,
    dtype="bfloat16",
)
SLIDING = replace(
    LLAMA_8B,
    id="sliding",
    layers=(
        Layer(cache=SlidingAttention(kv_heads=8, k_head_dim=128, v_head_dim=128, window=1024)),
        Layer(cache=FullAttention(kv_heads=8, k_head_dim=128, v_head_dim=128)),
    )
    * 4,
)
CHUNKED = replace(
    LLAMA_8B,
    id="chunked",
    layers=(Layer(cache=ChunkedAttention(kv_heads=8, k_head_dim=128, v_head_dim=128, window=8192)),) * 3,
)
DEEPSEEK_V3 = Model(
    id="deepseek-v3",
    source="by hand",
    architecture="deepseek_v3",
    attention="mla",
    layers=(
        Layer(
            cache=LatentAttention(
                kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=128, v_head_dim=128, q_lora_rank=1536
            )
        ),
    )
    * 61,
    hidden_size=7168,
    vocab_size=129280,
    num_heads=128,
    intermediate_size=18432,
    moe=Moe(
        num_experts=256,
        experts_per_token=8,
        intermediate_size=2048,
        shared_intermediate_size=2048,
        first_dense_layers=3,
    ),
    tie_word_embeddings=False,
    max_position_embeddings=163840,
    dtype="bfloat16",
)
DEEPSEEK_V32 = replace(
    DEEPSEEK_V3,
    id="deepseek-v3.2",
    architecture="deepseek_v32",
    layers=(replace(DEEPSEEK_V3.layers[0], indexer=Indexer(head_dim=128, heads=64, top_k_tokens=2048, dtype="fp8")),)
    * 61,
)
QWEN3_NEXT = replace(
    LLAMA_8B,
    id="qwen3-next",
    architecture="qwen3_next",
    num_heads=16,
    layers=(
        *(
            Layer(
                cache=GatedDeltaNet(key_heads=16, value_heads=32, key_head_dim=128, value_head_dim=128, conv_kernel=4)
            ),
        )
        * 3,
        Layer(cache=FullAttention(kv_heads=2, k_head_dim=256, v_head_dim=256)),
    )
    * 12,
)
NEMOTRON_H = replace(
    LLAMA_8B,
    id="nemotron-h",
    architecture="nemotron_h",
    layers=(
        Layer(cache=Mamba2(heads=128, head_dim=64, state_dim=128, groups=8, conv_kernel=4)),
        Layer(cache=None),
        Layer(cache=FullAttention(kv_heads=8, k_head_dim=128, v_head_dim=128)),
    ),
)
SHARING = replace(
    SLIDING,
    id="sharing",
    layers=(
        *SLIDING.layers,
        Layer(cache=SharedAttention(source_layer=6)),
        Layer(cache=SharedAttention(source_layer=7)),
    ),
)
CROSS = replace(
    LLAMA_8B,
    id="cross",
    layers=(
        *LLAMA_8B.layers[:2],
        Layer(cache=CrossAttention(kv_heads=8, k_head_dim=128, v_head_dim=128, encoder_tokens=1601)),
    ),
)
WHISPER = replace(
    LLAMA_8B,
    id="whisper",
    num_heads=16,
    layers=(
        Layer(
            cache=FullAttention(kv_heads=16, k_head_dim=64, v_head_dim=64),
            cross=CrossAttention(kv_heads=16, k_head_dim=64, v_head_dim=64, encoder_tokens=1500),
        ),
    )
    * 4,
)
_V4 = CompressedAttention(head_dim=512, qk_rope_head_dim=64, window=128)
DEEPSEEK_V4 = replace(
    DEEPSEEK_V3,
    id="deepseek-v4",
    architecture="deepseek_v4",
    num_heads=64,
    layers=(
        Layer(cache=_V4),
        Layer(
            cache=replace(_V4, ratio=4),
            indexer=Indexer(head_dim=128, heads=64, top_k_tokens=512, dtype="fp8", ratio=4),
        ),
        Layer(cache=replace(_V4, ratio=128)),
    ),
)
ALL_KINDS = (
    *(LLAMA_8B, SLIDING, CHUNKED, DEEPSEEK_V3, DEEPSEEK_V32, QWEN3_NEXT, NEMOTRON_H, SHARING, CROSS, WHISPER),
    DEEPSEEK_V4,
)

CARD = Gpu(
    name="CARD-80GB",
    vendor="none",
    arch=None,
    memory_bytes=80_000_000_000,
    source="by hand",
    confidence="high",
    memory_bandwidth_gbps=2000.0,
    bf16_tflops=1000.0,
)

# What 0.92 of CARD leaves of LLAMA_8B: less its weights, the widest piece of a forward pass of 8,192 tokens (three
# hidden states, attention's output, gate, up and product) with cuBLAS's workspace, a quarter of a GiB, graphs, and
# tables of 131,072 positions of 128 elements. No matrix of it is rounded up: all are whole multiples of 2 MiB.
LLAMA_8B_FORWARD_BYTES = 8192 * (4 * 4096 + 3 * 14336) * 2 + 8 * 1024**2 + 128 * 1024
LLAMA_8B_TABLE_BYTES = 131072 * 128 * 2


def graphs_by_hand(decodes: int, tp: int = 1) -> int:
    """So many of 102 times the fitted graphs of LLAMA_8B, and what those of mixed batches share."""
    fitted = 0.15 + 0.0057 * 32 + 0.11 * 4 + (0.25 if tp > 1 else 0)
    return round((fitted * decodes / 102 + 0.15) * 1024**3)


def llama_8b_pool_bytes(decodes: int) -> int:
    taken = LLAMA_8B_TABLE_BYTES + LLAMA_8B_FORWARD_BYTES + graphs_by_hand(decodes) + 1024**3 // 4
    return 73_600_000_000 - 16_060_522_496 - taken


LLAMA_8B_POOL_BYTES = llama_8b_pool_bytes(51)  # of 1,024 sequences
