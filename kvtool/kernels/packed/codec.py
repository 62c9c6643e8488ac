"""One vector to the bytes that a cache format stores of it, and back: codes packed bit by bit, their scales behind."""

from __future__ import annotations

from dataclasses import dataclass

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
    `static_scale`, which is stored nowhere. Triton's kernels are compiled for a codec, and read elements in pairs.
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
    def groups(self) -> int:
        """Of a vector."""
        return len(self._sizes)

    @property
    def half(self) -> int:
        """Pairs of a vector."""
        return self.elements // 2

    @property
    def half_group(self) -> int:
        """Pairs of a group."""
        return self._sizes[0] // 2

    @property
    def code_bytes(self) -> int:
        """Of a group, whose scales lie behind them."""
        return -(-self._sizes[0] * self.bits // 8)

    @property
    def in_pairs(self) -> bool:
        """Whether all groups are of one size, of whole fours, and scales lie at a multiple of their own bytes."""
        alignment = 2 if self.scheme == "minimum" else max(2, self.scale_bytes)
        return len(set(self._sizes)) == 1 and self._sizes[0] % 4 == 0 and self.code_bytes % alignment == 0

    @property
    def is_float(self) -> bool:
        """Whether codes are floats, or else integers from 0 on."""
        return self.scheme in _FLOATS

    @property
    def dtype(self) -> torch.dtype:
        """What codes are read in: floats one by one, integers of 8 bits in pairs, narrower ones by the byte."""
        return _FLOATS.get(self.scheme, torch.int16 if self.bits == 8 else torch.uint8)

    @property
    def scale_dtype(self) -> torch.dtype | None:
        """Of a scale, or of a step and the minimum behind it."""
        return _SCALES[2 if self.scheme == "minimum" else self.scale_bytes] if self.scale_bytes else None

    @property
    def zero(self) -> int:
        """The code of 0."""
        return 0 if self.scheme == "minimum" or self.is_float else 2 ** (self.bits - 1)

    @property
    def lowest(self) -> int:
        """The least code: symmetric ones leave out the one that has no opposite."""
        return 1 if self.scheme == "symmetric" else 0

    @property
    def largest(self) -> float:
        """The largest code, or float."""
        return torch.finfo(_FLOATS[self.scheme]).max if self.is_float else 2**self.bits - 1

    @property
    def gain(self) -> float:
        """What all values are divided by when they are stored."""
        return 1.0 if self.scale_bytes else self.static_scale

    def encode(self, rows: Tensor) -> Tensor:
        """rows [..., elements] -> uint8 [..., stored_bytes]."""
        if rows.numel() == 0:  # which has no stride to be viewed by
            return rows.new_empty(*rows.shape[:-1], self.stored_bytes, dtype=torch.uint8)
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
            low = part.amin(dim=-1, keepdim=True)
            step = (part.amax(dim=-1, keepdim=True) - low) / self.largest
            codes = self._rounded((part - low) / _divisor(step))
            return _packed(codes, self.bits), _as_bytes(torch.cat((step, low), dim=-1).half())
        scales = part.new_empty(*part.shape[:-1], 0, dtype=torch.uint8)
        scaled = part / self.gain
        if self.scale_bytes:
            scale = self._scale(part)
            scaled, scales = part / _divisor(scale), _as_bytes(scale.to(_SCALES[self.scale_bytes]))
        if self.is_float:
            return _as_bytes(scaled.clamp(-self.largest, self.largest).to(self.dtype)), scales
        return _packed(self._rounded(scaled + self.zero), self.bits), scales

    def _rounded(self, steps: Tensor) -> Tensor:
        return steps.round().clamp(self.lowest, self.largest).to(torch.uint8)

    def _scale(self, part: Tensor) -> Tensor:
        """fp32, one a group."""
        amax, where = part.abs().max(dim=-1, keepdim=True)
        if self.scheme == "signed":
            return part.gather(-1, where).div(-self.zero)
        return amax.clamp(min=_SMALLEST).div(self.largest if self.is_float else self.zero - 1)

    def _decoded(self, codes: Tensor, scales: Tensor, size: int) -> Tensor:
        if self.is_float:
            values: Tensor = codes.contiguous().view(self.dtype).float()
        else:
            values = _unpacked(codes, self.bits, size).float()
        if self.scheme == "minimum":
            step, low = scales.contiguous().view(torch.float16).float().split(1, dim=-1)
            return torch.addcmul(low, values, step)
        if self.zero:
            values = values.sub(self.zero)
        if not self.scale_bytes:
            return values.mul(self.gain)
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


def _as_bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 [..., n] of `bits` each -> bytes [..., n * bits / 8], the first code in the lowest bits. Of 5 bits
    the lower four come first, and behind them the fifth ones, eight a byte."""
    if bits == 8:
        return codes
    if bits == 5:
        return torch.cat((_packed(codes & 15, 4), _packed(codes >> 4, 1)), dim=-1)
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % (8 // bits)))
    places = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
    parts: Tensor = codes.unflatten(-1, (-1, 8 // bits))
    return parts.bitwise_left_shift(places).sum(-1, dtype=torch.uint8)


def _unpacked(stored: Tensor, bits: int, count: int) -> Tensor:
    """The inverse: `count` codes out of bytes."""
    if bits == 8:
        return stored
    if bits == 5:
        low, high = stored.split((-(-count // 2), -(-count // 8)), dim=-1)
        return _unpacked(low, 4, count) | _unpacked(high, 1, count) << 4
    places = torch.arange(0, 8, bits, dtype=torch.uint8, device=stored.device)
    whole: Tensor = (stored.unsqueeze(-1).bitwise_right_shift(places) & (2**bits - 1)).flatten(-2)
    return whole[..., :count]
