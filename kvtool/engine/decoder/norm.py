"""RMSNorm, x / rms(x) * weight, and LayerNorm, computed in fp32."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import layer_norm

from kvtool.catalog.decoder import Decoder
from kvtool.engine.weights.source import WeightSource
from kvtool.kernels.interface import StepKernels


class RmsNorm:
    """x / rms(x) * weight over the last dimension of x [..., n]; `weight` is [n], or [heads, n] for one row a head."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight, self.eps, self.size = weight, eps, weight.shape[-1]

    def __call__(self, x: Tensor, kernels: StepKernels) -> Tensor:
        return kernels.rms_norm(x, self.weight, self.eps)


class LayerNorm:
    """(x - mean) / standard deviation * weight + bias over the last dimension of x [..., n]."""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        self.weight, self.bias, self.eps = weight, bias, eps

    def __call__(self, x: Tensor, kernels: StepKernels) -> Tensor:
        return layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


Norm = RmsNorm | LayerNorm


def load_norm(decoder: Decoder, size: int, weights: WeightSource, name: str) -> Norm:
    """The norm of the decoder's kind that is called `name`."""
    weight = weights.tensor(f"{name}.weight", size)
    if decoder.norm_kind == "layer":
        return LayerNorm(weight, weights.tensor(f"{name}.bias", size), decoder.norm_eps)
    return RmsNorm(weight, decoder.norm_eps)
