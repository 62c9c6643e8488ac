"""Weights of 8 or 4 bits in the order in which the compiled kernels read them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvtool.kernels.blocks import GROUP, Blocks
from kvtool.kernels.cpu.memory import huge_pages

ROWS_OF_A_BLOCK = 32
LANES = 16


@dataclass(frozen=True, slots=True)
class Codes:
    """`Codes` of quantised.c: blocks uint8 [out / 32, in / 32, bytes of a block], with so many fp16 numbers an output;
    without any there are row_scales fp32 [out / 32, 2, 16]."""

    blocks: Tensor
    bits: int
    numbers: int
    row_scales: Tensor | None = None

    @property
    def outputs(self) -> int:
        return len(self.blocks) * ROWS_OF_A_BLOCK

    @property
    def nbytes(self) -> int:
        return self.blocks.nbytes + (0 if self.row_scales is None else self.row_scales.nbytes)

    @property
    def fields(self) -> tuple[int, int, int, int | None]:
        scales = None if self.row_scales is None else self.row_scales.data_ptr()
        return self.blocks.data_ptr(), self.bits, self.numbers, scales


def fits(blocks: Blocks) -> bool:
    """Whether the kernels know weights stored like this."""
    rows, columns = blocks.codes.shape
    known = blocks.least is None if blocks.bits == 8 else blocks.bits == 4 and not blocks.scales_rows
    return known and rows % ROWS_OF_A_BLOCK == 0 and columns % GROUP == 0


def packed_codes(stored: Blocks) -> Codes:
    """The weight as `Codes` says: four inputs a word, even outputs before odd ones, scales behind each block."""
    rows, columns = stored.codes.shape
    outer, groups = rows // ROWS_OF_A_BLOCK, columns // GROUP
    # [out / 32, in / 32, 8 words of 4 inputs, even or odd, 16 outputs, 4 inputs]
    codes = stored.codes.view(outer, LANES, 2, groups, 8, 4).permute(0, 3, 4, 2, 1, 5)
    if stored.bits == 4:
        codes = codes[:, :, 0::2] | codes[:, :, 1::2] << 4
    numbers = [] if stored.scales_rows else [part for part in (stored.scale, stored.least) if part is not None]
    parts = [codes.reshape(outer, groups, -1), *map(_halves, numbers)]
    joined = torch.empty(outer, groups, sum(part.shape[2] for part in parts), dtype=torch.uint8)
    blocks = torch.cat(parts, dim=2, out=huge_pages(joined))
    by_row = stored.scale.view(outer, LANES, 2).transpose(1, 2).contiguous() if stored.scales_rows else None
    return Codes(blocks, stored.bits, len(numbers), by_row)


def _halves(scales: Tensor) -> Tensor:
    """fp16 [out, in / 32] as bytes [out / 32, in / 32, 64]: an even output and the odd one behind it."""
    by_block = scales.unflatten(0, (-1, ROWS_OF_A_BLOCK)).transpose(1, 2).contiguous()
    found: Tensor = by_block.view(torch.uint8)
    return found.flatten(2)
