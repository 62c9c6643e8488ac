"""RMSNorm, x / rms(x) * weight, and LayerNorm, computed in fp32."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, rms_norm

from kvtool.catalog.decoder import Decoder
from kvtool.engine.weights.source import WeightSource
from kvtool.kernels.cpu.native import native, serves

_FEW_ROWS = 64


class RmsNorm:
    """Over the last dimension of x [..., n]; `weight` is [n], or [heads, n] for one row a head, in x's dtype or fp32.

    torch has a kernel for it on GPUs only; the compiled kernels have one for bf16 on CPUs. Without them few rows cost
    what their number of operations costs, and the LayerNorm kernel does it in three: the mean of (x, -x) is 0 and its
    variance the mean square of x. Many rows cost what their bytes cost, and are normalised in place.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight
        self.eps = eps
        self.size = weight.shape[-1]
        self._doubled = (
            torch.cat((weight, weight)).float()
            if weight.dim() == 1 and weight.device.type == "cpu" and weight.dtype == torch.bfloat16
            else None
        )

    def __call__(self, x: Tensor) -> Tensor:
        if self.weight.dtype != x.dtype:
            return (rms_norm(x.float(), (self.size,), eps=self.eps) * self.weight).to(x.dtype)
        kernels = native()
        if kernels is not None and self.weight.dim() == 1 and x.dim() == 2 and serves(x, self.weight):
            return kernels.rms_norm(x, self.weight, self.eps)
        if self._doubled is not None and len(x) <= _FEW_ROWS:
            doubled = torch.cat((x, -x), dim=-1)
            return layer_norm(doubled, (2 * self.size,), self._doubled, eps=self.eps)[..., : self.size]
        if self._doubled is not None:
            wide = x.float()
            scale = wide.square().mean(dim=-1, keepdim=True).add_(self.eps).rsqrt_()
            return wide.mul_(scale).mul_(self._doubled[: self.size]).to(x.dtype)
        if self.weight.dim() == 1:
            return rms_norm(x, (self.size,), self.weight, eps=self.eps)
        return rms_norm(x, (self.size,), eps=self.eps) * self.weight


class LayerNorm:
    """(x - mean) / standard deviation * weight + bias over the last dimension of x [..., n]."""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        self.weight, self.bias, self.eps = weight, bias, eps

    def __call__(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


Norm = RmsNorm | LayerNorm


def load_norm(decoder: Decoder, size: int, weights: WeightSource, name: str) -> Norm:
    """The norm of the decoder's kind that is called `name`."""
    weight = weights.tensor(f"{name}.weight", size)
    if decoder.norm_kind == "layer":
        return LayerNorm(weight, weights.tensor(f"{name}.bias", size), decoder.norm_eps)
    return RmsNorm(weight, decoder.norm_eps)
