"""One vector to the bytes that a cache format stores of it, and back: codes packed bit by bit, their scales behind."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

import torch
from torch import Tensor

_FLOATS = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}
_SCALES = {2: torch.float16, 4: torch.float32}
_SMALLEST = 1e-30  # of a scale that fp32 keeps: 0 / 0 is no value


@dataclass(frozen=True, slots=True)
class Codec:
    """Vectors of `elements`, `bits` each, a scale of `scale_bytes` for every `group` of them (0: none, None: one).

    `scheme` says how values become codes, as `sizing.formats.Scheme`. What has no scale of its own is divided by
    `static_scale`, which is stored nowhere.
    """

    elements: int
    bits: int
    scheme: str
    scale_bytes: int = 0
    group: int | None = None
    static_scale: float = 1.0

    @property
    def stored_bytes(self) -> int:
        """Of a vector with its scales."""
        return sum(-(-size * self.bits // 8) + self.scale_bytes for size in self._sizes)

    @property
    def _sizes(self) -> list[int]:
        """Elements of each group; the last may be shorter."""
        group = self.group or self.elements
        return [min(group, self.elements - start) for start in range(0, self.elements, group)]

    @property
    def has_odd_groups(self) -> bool:
        """Whether a group differs from the others in size, or is not of whole fours."""
        return len(set(self._sizes)) > 1 or self._sizes[0] % 4 > 0

    def encode(self, rows: Tensor) -> Tensor:
        """rows [..., elements] -> uint8 [..., stored_bytes]."""
        parts = rows.float().split(self._sizes, dim=-1)
        return torch.cat([piece for part in parts for piece in self._encoded(part)], dim=-1)

    def decode(self, stored: Tensor) -> Tensor:
        """uint8 [..., stored_bytes] -> fp32 [..., elements]."""
        widths = [width for size in self._sizes for width in (-(-size * self.bits // 8), self.scale_bytes)]
        pieces = stored.split(widths, dim=-1)
        groups = zip(pieces[::2], pieces[1::2], self._sizes, strict=True)
        return torch.cat([self._decoded(codes, scales, size) for codes, scales, size in groups], dim=-1)

    def _encoded(self, part: Tensor) -> tuple[Tensor, Tensor]:
        """The bytes of a group's codes, and those of its scale. Codes are of the scale before it is rounded to
        fp16, as ggml's are."""
        if self.scheme == "minimum":
            low, span = part.amin(dim=-1, keepdim=True), 2**self.bits - 1
            step = (part.amax(dim=-1, keepdim=True) - low) / span
            codes = _rounded((part - low) / _divisor(step), 0, span)
            return _packed(codes, self.bits), _as_bytes(torch.cat((step, low), dim=-1).half())
        scales = part.new_empty(*part.shape[:-1], 0, dtype=torch.uint8)
        scaled = part / self.static_scale
        if self.scale_bytes:
            scale = self._scale(part)
            scaled, scales = part / _divisor(scale), _as_bytes(scale.to(_SCALES[self.scale_bytes]))
        if self.scheme in _FLOATS:
            return _as_bytes(_as_float(scaled, _FLOATS[self.scheme])), scales
        zero = 2 ** (self.bits - 1)
        lowest = 1 if self.scheme == "symmetric" else 0
        return _packed(_rounded(scaled + zero, lowest, 2 * zero - 1), self.bits), scales

    def _scale(self, part: Tensor) -> Tensor:
        """fp32, one a group."""
        amax, where = part.abs().max(dim=-1, keepdim=True)
        if self.scheme == "signed":
            return part.gather(-1, where).div(-(2 ** (self.bits - 1)))
        if self.scheme in _FLOATS:
            return amax.clamp(min=_SMALLEST).div(torch.finfo(_FLOATS[self.scheme]).max)
        return amax.clamp(min=_SMALLEST).div(2 ** (self.bits - 1) - 1)

    def _decoded(self, codes: Tensor, scales: Tensor, size: int) -> Tensor:
        if self.scheme in _FLOATS:
            values: Tensor = codes.contiguous().view(_FLOATS[self.scheme]).float()
        else:
            values = _unpacked(codes, self.bits, size).float()
        if self.scheme == "minimum":
            step, low = scales.contiguous().view(torch.float16).float().split(1, dim=-1)
            return torch.addcmul(low, values, step)
        if self.scheme not in _FLOATS:
            values = values.sub(2 ** (self.bits - 1))
        if not self.scale_bytes:
            return values.mul(self.static_scale)
        return values.mul(scales.contiguous().view(_SCALES[self.scale_bytes]).float())


def static_scale(amax: float, scheme: str, bits: int) -> float:
    """The one scale that makes `amax` the largest that is stored; floats wider than 8 bits need none."""
    if bits > 8:
        return 1.0
    largest = torch.finfo(_FLOATS[scheme]).max if scheme in _FLOATS else 2.0 ** (bits - 1) - 1
    return max(amax, _SMALLEST) / largest


def _divisor(scale: Tensor) -> Tensor:
    """A scale of 0 belongs to values that are all alike, whose code is that of no difference."""
    wide = scale.float()
    return wide.masked_fill(wide == 0, 1.0)


def _rounded(values: Tensor, low: int, high: int) -> Tensor:
    return values.round().clamp(low, high).to(torch.uint8)


def _as_float(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Clamped to the finite range, which a cast to 8 bits would leave."""
    limit = torch.finfo(dtype).max
    return values.clamp(-limit, limit).to(dtype)


def _as_bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 [..., n] of `bits` each -> bytes [..., ceil(n * bits / 8)], the first code in the lowest bits."""
    if bits == 8:
        return codes
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % (lcm(bits, 8) // bits)))
    if 8 % bits == 0:
        places = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
        parts: Tensor = codes.unflatten(-1, (-1, 8 // bits))
        return parts.bitwise_left_shift(places).sum(-1, dtype=torch.uint8)
    places = torch.arange(bits, dtype=torch.uint8, device=codes.device)
    ones: Tensor = (codes.unsqueeze(-1).bitwise_right_shift(places) & 1).flatten(-2).unflatten(-1, (-1, 8))
    return _summed(ones, 8)


def _summed(ones: Tensor, bits: int) -> Tensor:
    """Bits uint8 [..., bits], the lowest first -> the numbers that they are."""
    places = torch.arange(bits, dtype=torch.uint8, device=ones.device)
    return ones.bitwise_left_shift(places).sum(-1, dtype=torch.uint8)


def _unpacked(stored: Tensor, bits: int, count: int) -> Tensor:
    """The inverse: `count` codes out of bytes."""
    if bits == 8:
        return stored
    if 8 % bits == 0:
        places = torch.arange(0, 8, bits, dtype=torch.uint8, device=stored.device)
        whole: Tensor = (stored.unsqueeze(-1).bitwise_right_shift(places) & (2**bits - 1)).flatten(-2)
        return whole[..., :count]
    shifted: Tensor = stored.unsqueeze(-1).bitwise_right_shift(torch.arange(8, dtype=torch.uint8, device=stored.device))
    ones = (shifted & 1).flatten(-2)[..., : count * bits].unflatten(-1, (count, bits))
    return _summed(ones, bits)
