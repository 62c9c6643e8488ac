"""RMSNorm: x / rms(x) * weight, computed in fp32."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, rms_norm


class RmsNorm:
    """Over the last dimension of x [..., n]; `weight` is [n], or [heads, n] for one row a head.

    torch has a kernel for it on GPUs only. On a CPU in bf16 its LayerNorm kernel does the same in fewer operations:
    the mean of (x, -x) is 0 and its variance the mean square of x.
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
        if self._doubled is not None:
            doubled = torch.cat((x, -x), dim=-1)
            return layer_norm(doubled, (2 * self.size,), self._doubled, eps=self.eps)[..., : self.size]
        if self.weight.dim() == 1:
            return rms_norm(x, (self.size,), self.weight, eps=self.eps)
        return rms_norm(x, (self.size,), eps=self.eps) * self.weight
