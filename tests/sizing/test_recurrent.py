from __future__ import annotations

import pytest

from kvtool.catalog.model import (
    GatedDeltaNet,
    KimiDeltaAttention,
    LightningAttention,
    Mamba1,
    Mamba2,
    RecurrentLayer,
    ShortConvolution,
)
from kvtool.sizing.specs.recurrent import conv_elements, recurrent_elements
from kvtool.system.errors import KvtoolError

GDN = GatedDeltaNet(key_heads=16, value_heads=32, key_head_dim=128, value_head_dim=128, conv_kernel=4)
MAMBA2 = Mamba2(heads=128, head_dim=80, state_dim=128, groups=8, conv_kernel=4)


@pytest.mark.parametrize(
    ("layer", "conv", "recurrent"),
    [
        (Mamba1(inner_dim=8192, state_dim=16, conv_kernel=4), 8192 * 3, 8192 * 16),
        (MAMBA2, (128 * 80 + 2 * 8 * 128) * 3, 128 * 80 * 128),
        (GDN, (2 * 16 * 128 + 32 * 128) * 3, 32 * 128 * 128),
        (KimiDeltaAttention(heads=32, head_dim=128, conv_kernel=4), 3 * 32 * 128 * 3, 32 * 128 * 128),
        (LightningAttention(heads=64, head_dim=128), 0, 64 * 128 * 128),
        (ShortConvolution(dim=2048, conv_kernel=3), 2048 * 2, 0),
    ],
)
def test_elements_as_vllm_shapes_them(layer: RecurrentLayer, conv: int, recurrent: int) -> None:
    """vLLM 0.33.0, model_executor/layers/mamba/mamba_utils.py."""
    assert (conv_elements(layer), recurrent_elements(layer)) == (conv, recurrent)


def test_qwen3_next_takes_1097728_bytes_a_layer() -> None:
    """The state page of Qwen3-Next in bf16, which vLLM divides into blocks of 544 tokens of 2,048 B."""
    assert 2 * (conv_elements(GDN) + recurrent_elements(GDN)) == 1_097_728


def test_heads_are_split_and_groups_padded_up_to_the_ranks() -> None:
    assert recurrent_elements(MAMBA2, tp=16) == 128 * 80 * 128 // 16
    assert conv_elements(MAMBA2, tp=16) == (128 * 80 + 2 * 16 * 128) // 16 * 3  # 16 ranks need 16 groups, not 8


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(KvtoolError, match="tp 3 does not divide the 32 state heads"):
        recurrent_elements(GDN, tp=3)
