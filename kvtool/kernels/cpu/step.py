"""What lies between the products of a step on a CPU: norms, rotations, rows into the pages, the likeliest token.

The compiled kernels do it where they are and take the tensors, torch's operations elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from kvtool.kernels import plain
from kvtool.kernels.cpu.attention import store
from kvtool.kernels.cpu.memory import ROW
from kvtool.kernels.cpu.native import native, serves
from kvtool.kernels.interface import Replay, Rotation
from kvtool.kernels.pages import Pages

_FEW_ROWS = 64


def record(step: Callable[[], Tensor]) -> tuple[Tensor, Replay | None]:
    kernels = native()
    return plain.record(step) if kernels is None else kernels.record(step)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    kernels = native()
    if kernels is not None and x.dim() in (2, 3) and serves(x, weight):
        return kernels.rms_norm(x, weight, eps)
    if x.device.type == "cpu" and x.dtype == weight.dtype == torch.bfloat16 and weight.dim() == 1:
        return _norm_of_few(x, weight, eps) if len(x) <= _FEW_ROWS else _norm_of_many(x, weight, eps)
    return plain.rms_norm(x, weight, eps)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, x_weight: Tensor | None = None, *, eps: float
) -> tuple[Tensor, Tensor]:
    x = x if x_weight is None else rms_norm(x, x_weight, eps)
    kernels = native()
    if kernels is not None and weight is not None and serves(x, residual, weight):
        return kernels.add_rms_norm(x, residual, weight, eps)
    added = x + residual
    return added if weight is None else rms_norm(added, weight, eps), added


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    kernels = native()
    width = rotation[0].shape[-1]
    if kernels is not None and width == x.shape[-1] and width % (2 * ROW) == 0 and serves(x, *rotation):
        return kernels.rotate(x, *rotation)
    return plain.rotate(x, rotation)


def likeliest(logits: Tensor) -> Tensor:
    kernels = native()
    return kernels.likeliest(logits) if kernels is not None and serves(logits) else plain.likeliest(logits)


def split_qkv(
    qkv: Tensor, norms: Tensor | None, eps: float, rotation: Rotation | None, pages: Pages, slots: Tensor
) -> Tensor:
    kv_heads = pages.k.shape[2]
    qk, v = qkv[:, :-kv_heads], qkv[:, -kv_heads:]
    qk = qk if norms is None else rms_norm(qk, norms, eps)
    qk = qk if rotation is None else rotate(qk, rotation)
    store(qk[:, -kv_heads:], v, pages, slots)
    return qk[:, :-kv_heads]


def split_latent(
    q: Tensor,
    latent: Tensor,
    norm: Tensor,
    eps: float,
    rotation: Rotation,
    pages: Pages,
    slots: Tensor,
    num_absorbed: int,
) -> Tensor:
    rank, rope = len(norm), rotation[0].shape[-1]
    k_rope = rotate(latent[:, None, rank:], rotation).squeeze(1)
    store(torch.cat((rms_norm(latent[:, :rank], norm, eps), k_rope), dim=1), None, pages, slots)
    q_rope = rotate(q[..., -rope:], rotation)
    absorbed = q.new_empty(num_absorbed, q.shape[1], rank + rope)
    absorbed[..., rank:] = q_rope[:num_absorbed]
    q[num_absorbed:, :, -rope:] = q_rope[num_absorbed:]
    return absorbed


def _norm_of_few(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Few rows cost what their number of operations costs, and the LayerNorm kernel does it in few: the mean of (x, -x)
    is 0 and its variance the mean square of x."""
    size = len(weight)
    doubled = torch.cat((x, -x), dim=-1)
    return layer_norm(doubled, (2 * size,), torch.cat((weight, weight)).float(), eps=eps)[..., :size]


def _norm_of_many(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Many rows cost what their bytes cost, and are normalised in place."""
    wide = x.float()
    scale = wide.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
    return wide.mul_(scale).mul_(weight.float()).to(x.dtype)
