from __future__ import annotations

import pytest

from kvtool.catalog.attention import attention_name
from kvtool.catalog.model import (
    CacheKind,
    FullAttention,
    LatentAttention,
    Layer,
    LightningAttention,
    Mamba1,
    ShortConvolution,
    SlidingAttention,
)

GROUPED = FullAttention(kv_heads=2, k_head_dim=8, v_head_dim=8)


@pytest.mark.parametrize(
    ("kinds", "name"),
    [
        ([FullAttention(kv_heads=8, k_head_dim=8, v_head_dim=8)], "mha"),
        ([GROUPED], "gqa"),
        ([FullAttention(kv_heads=1, k_head_dim=8, v_head_dim=8)], "mqa"),
        ([SlidingAttention(kv_heads=2, k_head_dim=8, v_head_dim=8, window=4)], "gqa+sliding"),
        ([LatentAttention(kv_lora_rank=8, qk_rope_head_dim=4), LightningAttention(heads=2, head_dim=4)], "mla+linear"),
        ([GROUPED, Mamba1(inner_dim=4, state_dim=2, conv_kernel=4)], "gqa+mamba"),
        ([ShortConvolution(dim=4, conv_kernel=3), GROUPED], "gqa+conv"),
        ([None], "none"),
    ],
)
def test_name_says_what_the_layers_keep(kinds: list[CacheKind | None], name: str) -> None:
    assert attention_name([Layer(cache=kind) for kind in kinds], num_heads=8) == name
