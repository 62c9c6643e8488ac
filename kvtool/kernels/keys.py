"""The pool and the softmax as the attention kernels take them.

Scores are kept in base 2: exp(scale * s) = exp2(scale * log2(e) * s), so the scale, log2(e) and the keys'
dequantisation scale are one factor; the values' scale multiplies the normalised output. A scale beside each vector
multiplies a key's scores and a value's weights instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import triton
from torch import Tensor

from kvtool.kernels import checks, configs, gpu
from kvtool.kernels.configs import Target, Tile, padded
from kvtool.kernels.quantise import largest
from kvtool.kernels.store import of_one_head, scale_strides

if TYPE_CHECKING:
    from kvtool.kernels import Scale

NO_WINDOW = 2**30  # longer than any sequence, and a few queries more are still an int32


@dataclass(frozen=True)
class Softmax:
    """What happens to the scores of a row: scaled, capped, hidden behind a window, joined by the sink of its head."""

    scale: float
    window: int = 0
    softcap: float = 0.0
    sinks: Tensor | None = None

    def arguments(self, keys: Keys, num_heads: int) -> dict[str, object]:
        """qk_scale and cap in base 2: s -> s * qk_scale, or -> cap * tanh(s * qk_scale)."""
        checks.softmax(self.softcap, self.sinks, num_heads)
        scale = self.scale if isinstance(keys.k_scale, Tensor) else self.scale * keys.k_scale
        return {
            "sinks_ptr": self.sinks,
            "qk_scale": scale / self.softcap if self.softcap else scale * math.log2(math.e),
            "cap": self.softcap * math.log2(math.e),
            "window": self.span,
            "CAPPED": self.softcap > 0,
        }

    @property
    def span(self) -> int:
        """Keys that one query sees at most."""
        return self.window or NO_WINDOW


@dataclass(frozen=True)
class Keys:
    """The pool as both attention kernels take it: k [P,B,HKV,D] and v [P,B,HKV,DV], with their scales.

    With rope_dim > 0 a row of k is [latent | rotary key] and v its latent part, which the kernels then load once.
    """

    k: Tensor
    v: Tensor
    k_scale: Scale
    v_scale: Scale
    rope_dim: int = 0

    @property
    def head_dim(self) -> int:
        return self.k.shape[3] - self.rope_dim

    @property
    def num_heads(self) -> int:
        return self.k.shape[2]

    @property
    def bytes_per_key(self) -> int:
        """Read for one key of one head; a latent is read once for key and value."""
        values = 0 if self.rope_dim else self.v.shape[3]
        return (self.k.shape[3] + values) * self.k.element_size()

    def tile(self, q: Tensor, rows: int, target: Target) -> Tile:
        return configs.attention_tile(_dot_dim(self.head_dim), rows, q.element_size(), self.k.element_size(), target)

    def arguments(self, tile: Tile, target: Target) -> dict[str, object]:
        k, v, v_dim = self.k, self.v, self.v.shape[3]
        return {
            "k_ptr": k,
            "v_ptr": v,
            "k_page_stride": k.stride(0),
            "k_slot_stride": k.stride(1),
            "k_head_stride": k.stride(2),
            "v_page_stride": v.stride(0),
            "v_slot_stride": v.stride(1),
            "v_head_stride": v.stride(2),
            "HEAD_DIM": self.head_dim,
            "V_DIM": v_dim,
            "ROPE_DIM": self.rope_dim,
            "BLOCK_D": _dot_dim(self.head_dim),
            "BLOCK_DV": _dot_dim(v_dim),
            "BLOCK_ROPE": _dot_dim(self.rope_dim) if self.rope_dim else 0,
            "PAGE": k.shape[1],
            "TMA": self._by_descriptor(tile, target),
            "num_pages": len(k),
        } | self._scale_arguments()

    def _by_descriptor(self, tile: Tile, target: Target) -> bool:
        """Whether TMA loads the tiles: where rows and pages begin at multiples of its 16 bytes."""
        starts: list[int] = [self.head_dim if self.rope_dim else 0]
        for tensor in (self.k, self.v):
            starts += [int(tensor.storage_offset()), *tensor.stride()[:3]]
        aligned = all(start * self.k.element_size() % configs.TMA_ALIGNMENT == 0 for start in starts)
        has_scales = isinstance(self.k_scale, Tensor)
        shape = _dot_dim(self.head_dim), self.k.shape[1], self.k.element_size()
        uses_tma = aligned and tile.uses_tma(*shape, target, vector_scales=has_scales)
        if uses_tma:
            triton.set_allocator(gpu.descriptor_memory)
        return uses_tma

    def _scale_arguments(self) -> dict[str, object]:
        """With scales of their own, values are taken times the largest of the dtype, which v_scale takes out again."""
        checks.scales(self.k_scale, self.v_scale, self.k)
        k_scale = self.k_scale if isinstance(self.k_scale, Tensor) else None
        v_scale = self.v_scale if isinstance(self.v_scale, Tensor) else None
        return {
            "k_scale_ptr": k_scale,
            "v_scale_ptr": v_scale,
            "v_scale": self.v_scale if v_scale is None else 1.0 / largest(self.v.dtype),
            **scale_strides(k_scale),
        }


def latent_keys(cache: Tensor, latent_dim: int, scale: Scale) -> Keys:
    checks.latent(cache, latent_dim)
    k, scale = cache.unsqueeze(2), of_one_head(scale)
    return Keys(k, k[..., :latent_dim], scale, scale, rope_dim=cache.shape[2] - latent_dim)


def _dot_dim(dim: int) -> int:
    """A dimension padded for `tl.dot`, which needs at least 16."""
    return max(16, padded(dim))
