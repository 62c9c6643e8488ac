"""Attention over some of the keys, with the log-sum-exp that lets such parts be put together.

softmax over all keys = sum over parts of exp(lse_part - lse) * out_part, lse = log sum exp(lse_part): the merge of
FlashDecoding and of ring attention. By torch alone, on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.kernels.rows import Softmax

_SCORES = 2**22  # elements of scores that are held at once


def partial_attention(
    q: Tensor, k: Tensor, v: Tensor, query_positions: range, key_positions: range, softmax: Softmax
) -> Tensor:
    """q [n,HQ,D] at query_positions over k [m,HKV,D], v [m,HKV,DV] at key_positions, causal -> fp32 [n,HQ,DV+1].

    The last column is the log-sum-exp of the scores, -inf where a query sees no key. Sinks are left to `finished`.
    """
    found = q.new_full((len(q), q.shape[1], v.shape[-1] + 1), 0.0, dtype=torch.float32)
    found[..., -1] = float("-inf")
    if not len(q) or not len(k):
        return found
    k, v = k.float(), v.float()
    block = max(1, _SCORES // (q.shape[1] * len(k)))
    for first in range(0, len(q), block):
        rows = slice(first, min(first + block, len(q)))
        found[rows] = _block(q[rows].float(), k, v, query_positions[rows], key_positions, softmax)
    return found


def _block(q: Tensor, k: Tensor, v: Tensor, queries: range, keys: range, softmax: Softmax) -> Tensor:
    grouped = q.unflatten(1, (k.shape[1], -1))
    scores = torch.einsum("qhgd,khd->hgqk", grouped, k) * softmax.scale
    if softmax.softcap:
        scores = scores.div_(softmax.softcap).tanh_().mul_(softmax.softcap)
    if queries[0] < keys[-1] or softmax.window:
        ages = _tensor(queries, q.device)[:, None] - _tensor(keys, q.device)
        hidden = ages < 0
        if softmax.window:
            hidden |= ages >= softmax.window
        scores.masked_fill_(hidden, float("-inf"))
    lse = scores.logsumexp(dim=-1)
    weights = torch.exp(scores - lse.clamp(min=torch.finfo(lse.dtype).min)[..., None])  # a row without keys: all zeros
    out = torch.einsum("hgqk,khd->qhgd", weights, v).flatten(1, 2)
    return torch.cat((out, lse.flatten(0, 1).T[..., None]), dim=-1)


def _tensor(positions: range, device: torch.device) -> Tensor:
    return torch.arange(positions.start, positions.stop, positions.step, device=device)


def merged(a: Tensor, b: Tensor) -> Tensor:
    """Two parts [n,HQ,DV+1] of the same queries as one."""
    lse = torch.logaddexp(a[..., -1:], b[..., -1:])
    floor = lse.clamp(min=torch.finfo(lse.dtype).min)
    out = a[..., :-1] * torch.exp(a[..., -1:] - floor) + b[..., :-1] * torch.exp(b[..., -1:] - floor)
    return torch.cat((out, lse), dim=-1)


def finished(parts: Tensor, softmax: Softmax, dtype: torch.dtype) -> Tensor:
    """[n,HQ,DV+1] of all keys -> attention [n,HQ,DV], after the sinks have taken their share."""
    out, lse = parts[..., :-1], parts[..., -1]
    if softmax.sinks is not None:
        out = out * torch.exp(lse - torch.logaddexp(lse, softmax.sinks.float()))[..., None]
    return out.to(dtype)
