"""Pages and softmax as the attention kernels take them.

Scores are kept in base 2: exp(scale * s) = exp2(scale * log2(e) * s), so the scale, log2(e) and the keys'
dequantisation scale are one factor; the values' scale multiplies the normalised output. A scale beside each vector
multiplies a key's scores and a value's weights instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
from torch import Tensor

from kvtool.kernels.quantise import largest
from kvtool.kernels.triton import checks, gpu
from kvtool.kernels.triton.store import scale_strides
from kvtool.kernels.triton.tiles import rules
from kvtool.kernels.triton.tiles.rules import Shape, Target, Tile, padded

if TYPE_CHECKING:
    from kvtool.kernels.pages import Pages, Scale
    from kvtool.kernels.rows import Rows, Softmax

NO_WINDOW = 2**30  # longer than any sequence, and a few queries more are still an int32


def span(softmax: Softmax) -> int:
    """Keys that one query sees at most."""
    return softmax.window or NO_WINDOW


def softmax_arguments(softmax: Softmax, k_scale: Scale = 1.0) -> dict[str, object]:
    """qk_scale and cap in base 2: s -> s * qk_scale, or -> cap * tanh(s * qk_scale)."""
    scale = softmax.scale if isinstance(k_scale, Tensor) else softmax.scale * k_scale
    return {
        "sinks_ptr": softmax.sinks,
        "qk_scale": scale / softmax.softcap if softmax.softcap else scale * math.log2(math.e),
        "cap": softmax.softcap * math.log2(math.e),
        "window": span(softmax),
        "CAPPED": softmax.softcap > 0,
    }


@dataclass(frozen=True)
class Keys:
    """Pages as both attention kernels take them: k [P,B,HKV,D] and v [P,B,HKV,DV], with their scales.

    Every key of MLA goes on in rope [P,B,E], which all heads share. Without v a key is its own value, loaded once.
    """

    k: Tensor
    v: Tensor | None
    k_scale: Scale
    v_scale: Scale
    rope: Tensor | None = None
    rope_scale: Scale = 1.0

    @property
    def values(self) -> Tensor:
        return self.k if self.v is None else self.v

    @property
    def num_heads(self) -> int:
        return self.k.shape[2]

    @property
    def value_dim(self) -> int:
        return self.values.shape[3]

    @property
    def block_size(self) -> int:
        return self.k.shape[1]

    @property
    def has_vector_scales(self) -> bool:
        return isinstance(self.k_scale, Tensor)

    @property
    def bytes_per_key(self) -> int:
        """Read for one key of one head."""
        dims = [tensor.shape[-1] for tensor in (self.k, self.v, self.rope) if tensor is not None]
        return sum(dims) * self.k.element_size()

    def decode_tile(self, q: Tensor, rows: int, target: Target) -> Tile:
        shape = self._shape("decode", q, rows)
        rule = rules.decode_tile(shape.head_dim, rows, shape.query_bytes, shape.cache_bytes, target)
        return target.tuned.get(shape, rule)

    def prefill_tile(self, q: Tensor, rows: int, target: Target) -> Tile:
        shape, rope_dim = self._shape("prefill", q, rows), 0 if self.rope is None else self.rope.shape[2]
        rule = rules.attention_tile(shape.head_dim, rows, shape.query_bytes, shape.cache_bytes, target, rope_dim)
        return target.tuned.get(shape, rule)

    def _shape(self, operation: str, q: Tensor, rows: int) -> Shape:
        return Shape(
            operation,
            head_dim=_dot_dim(self.k.shape[3]),
            rope_dim=0 if self.rope is None else padded(self.rope.shape[2]),
            rows=min(padded(rows), rules.MAX_SHAPE_ROWS),
            query_bytes=q.element_size(),
            cache_bytes=self.k.element_size(),
            page=self.k.shape[1],
        )

    def decode_arguments(
        self, q: Tensor, rows: Rows, softmax: Softmax, tile: Tile, target: Target
    ) -> dict[str, object]:
        """NARROW: a card converts fp8 to fp16 in one step, and int8 need not be converted. BLOCK_SEQS: sequences that a
        list is made of, else 0."""
        num_seqs = len(rows.seq_lens)
        in_half = q.dtype == torch.bfloat16 and self.k.dtype in checks.FP8_DTYPES
        return {
            "NARROW": "int8" if tile.integers and self._suits_integers(tile) else "fp16" if in_half else "",
            "num_seqs": num_seqs,
            "BLOCK_SEQS": padded(num_seqs) if tile.lists else 0,
            **self.arguments(softmax, tile, target),
        }

    def _suits_integers(self, tile: Tile) -> bool:
        """A matrix instruction of int8 goes through 32 elements at once; that of warp groups takes no values as they
        lie."""
        widths = [_dot_dim(tensor.shape[-1]) for tensor in (self.k, self.rope) if tensor is not None]
        return self.k.dtype == torch.int8 and tile.block_m < 64 and min(*widths, tile.block_n) >= 32

    def arguments(self, softmax: Softmax, tile: Tile, target: Target) -> dict[str, object]:
        k, v, rope = self.k, self.v, self.rope
        head_dim, v_dim, rope_dim = k.shape[3], self.value_dim, 0 if rope is None else rope.shape[2]
        return {
            "k_ptr": k,
            "v_ptr": v,
            "rope_ptr": rope,
            **_strides("k", k, ("page", "slot", "head")),
            **_strides("v", v, ("page", "slot", "head")),
            **_strides("rope", rope, ("page", "slot")),
            "HEAD_DIM": head_dim,
            "V_DIM": v_dim,
            "ROPE_DIM": rope_dim,
            "BLOCK_D": _dot_dim(head_dim),
            "BLOCK_DV": _dot_dim(v_dim),
            "BLOCK_ROPE": _dot_dim(rope_dim) if rope_dim else 0,
            "TMA": self._by_descriptor(tile, target),
            # A soft-cap keeps the loop of keys before a window: without it ptxas spills a little in prefill on Hopper.
            "WINDOWED": softmax.window > 0 or softmax.softcap > 0,
            "num_pages": len(k),
            **softmax_arguments(softmax, self.k_scale),
            **self._scale_arguments(),
        }

    def _by_descriptor(self, tile: Tile, target: Target) -> bool:
        """Whether TMA loads the tiles: where rows and pages begin at multiples of its 16 bytes."""
        starts: list[int] = []
        for tensor in (self.k, self.v, self.rope):
            if tensor is not None:
                starts += [int(tensor.storage_offset()), *tensor.stride()[:-1]]
        aligned = all(start * self.k.element_size() % rules.TMA_ALIGNMENT == 0 for start in starts)
        shape = _dot_dim(self.k.shape[3]), self.k.shape[1], self.k.element_size()
        uses_tma = aligned and tile.uses_tma(*shape, target, vector_scales=self.has_vector_scales)
        if uses_tma:
            triton.set_allocator(gpu.descriptor_memory)
        return uses_tma

    def _scale_arguments(self) -> dict[str, object]:
        """With scales of their own, values are taken times the largest of the dtype, which v_scale takes out again."""
        k_scale, v_scale, rope_scale = (
            scale if isinstance(scale, Tensor) else None for scale in (self.k_scale, self.v_scale, self.rope_scale)
        )
        return {
            "k_scale_ptr": k_scale,
            "v_scale_ptr": v_scale,
            "rope_scale_ptr": rope_scale,
            "v_scale": self.v_scale if v_scale is None else 1.0 / largest(self.k.dtype),
            **scale_strides(k_scale),
        }


def keys_of(pages: Pages) -> Keys:
    """Latents are one head of [P,B,1,R] whose keys go on in the other columns; each part has its scale."""
    scale, rank = pages.k_scale, pages.latent_dim
    if pages.v is not None:
        return Keys(pages.k, pages.v, scale, pages.v_scale, pages.k_rope)
    latents, rope = pages.k[..., :rank].unsqueeze(2), pages.k[..., rank:]
    if not isinstance(scale, Tensor):
        return Keys(latents, None, scale, scale, rope, scale)
    one, other = scale.split(1, dim=2)
    return Keys(latents, None, one, one, rope, other)


def _strides(name: str, tensor: Tensor | None, dims: tuple[str, ...]) -> dict[str, int]:
    strides = (0,) * len(dims) if tensor is None else tensor.stride()
    return {f"{name}_{dim}_stride": stride for dim, stride in zip(dims, strides, strict=False)}


def _dot_dim(dim: int) -> int:
    """A dimension padded for `tl.dot`, which needs at least 16."""
    return max(16, padded(dim))
