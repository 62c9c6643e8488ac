"""Where the pages of some sequences lie once they are copied side by side."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvtool.units import ceil_div


@dataclass(frozen=True, slots=True)
class Gathered:
    """`pages` [n] int32 of a cache, as they are to be copied, and the sequences' block tables [S, N] int32 over the
    copy, in blocks of `block_size` tokens. All of it known on the host: nothing waits for the device."""

    pages: Tensor
    block_tables: Tensor
    block_size: int


def gathered(sequences: tuple[list[int], ...], page_size: int, block_tokens: int, device: torch.device) -> Gathered:
    """The pages of each sequence, one sequence after another, as blocks of at least `block_tokens` tokens. What is
    missing in the last block of a sequence is filled with its last page."""
    pages_per_block = ceil_div(block_tokens, page_size)
    pages: list[int] = []
    tables: list[list[int]] = []
    for own in sequences:
        first, num_blocks = len(pages) // pages_per_block, ceil_div(len(own), pages_per_block)
        tables.append(list(range(first, first + num_blocks)))
        pages += own + own[-1:] * (num_blocks * pages_per_block - len(own))
    width = max(len(table) for table in tables)
    padded = [table + [0] * (width - len(table)) for table in tables]
    copied, block_tables = (
        torch.tensor(ids, dtype=torch.int32).to(device, non_blocking=True) for ids in (pages, padded)
    )
    return Gathered(copied, block_tables, pages_per_block * page_size)
