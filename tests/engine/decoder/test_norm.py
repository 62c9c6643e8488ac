"""Norms against fp64, with weights in the run's dtype and in fp32."""

from __future__ import annotations

import pytest
import torch

from kvtool.engine.decoder.norm import LayerNorm, RmsNorm
from kvtool.kernels import load_kernels
from tests.engine.conftest import SaveTiny
from tests.engine.running import load

KERNELS = load_kernels("torch")


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 8, 100])
@pytest.mark.parametrize("shape", [(96,), (4, 96)])
def test_an_fp32_weight_is_applied_before_the_one_rounding(rows: int, shape: tuple[int, ...]) -> None:
    """A weight of 1 + w that was rounded to bf16 first would be off by up to 2^-8 in every row alike."""
    weight = 1 + 0.01 * drawn(*shape, seed=1)
    x = drawn(rows, *shape, seed=0).bfloat16()
    found = RmsNorm(weight, 1e-6)(x, KERNELS)
    wide = x.double()
    exact = wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight.double()
    assert found.dtype == torch.bfloat16
    assert bool(((found.double() - exact).abs() <= exact.abs() * 2**-8 * 1.001).all())
    assert float((found == exact.bfloat16()).float().mean()) > 0.999


def test_gemma_keeps_its_norms_in_fp32(tiny: SaveTiny) -> None:
    layer = load(tiny("gemma3").folder, dtype="bf16").transformer.layers[0]
    norms = (layer.attention_in, layer.attention_out, layer.mlp_in, layer.mlp_out, layer.attention.qk_norm)
    assert [norm.weight.dtype for norm in norms] == [torch.float32] * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_norm(dtype: torch.dtype) -> None:
    x, weight, bias = (drawn(*shape, seed=seed).to(dtype) for seed, shape in enumerate(((9, 96), (96,), (96,))))
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True)
    exact = centred * (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double() + bias.double()
    torch.testing.assert_close(LayerNorm(weight, bias, 1e-5)(x, KERNELS), exact.to(dtype))
