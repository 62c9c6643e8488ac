"""Which tile each Triton kernel runs with, by head dimension, dtype and number of rows. The one place to tune."""

from __future__ import annotations

from dataclasses import dataclass

PROGRAMS_PER_SM = 4
MAX_SPLITS = 64
MIN_SPLIT_TOKENS = 128
MERGE_BLOCK_DV = 128  # columns of one merge program: MAX_SPLITS x 128 fp32 partials stay in registers
STORE_BLOCK = 1024


@dataclass(frozen=True)
class Tile:
    """block_m query rows against block_n keys at a time."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int

    @property
    def min_tiles(self) -> int:
        """Tiles of the shortest split: fewer would cost more to merge than they save."""
        return max(1, MIN_SPLIT_TOKENS // self.block_n)


def decode_tile(head_dim: int, group: int, element_bytes: int) -> Tile:
    """Tile for one query a sequence: the query heads of a group are the rows. `element_bytes` is of the queries."""
    rows = min(max(padded(group), 16), 64)
    if element_bytes == 4:
        return Tile(rows, 16, num_warps=4, num_stages=2)
    return Tile(rows, 64 if head_dim <= 128 else 32, num_warps=4, num_stages=3)


def prefill_tile(head_dim: int, rows: int, element_bytes: int) -> Tile:
    """Tile for `rows` = longest query x group: 128 rows of 8 warps run wgmma on Hopper, short chunks waste fewer."""
    if element_bytes == 4:
        return Tile(16, 16, num_warps=4, num_stages=2)
    if rows <= 16:
        return Tile(16, 64 if head_dim <= 128 else 32, num_warps=4, num_stages=3)
    if rows <= 64:
        return Tile(64, 64 if head_dim <= 128 else 32, num_warps=4, num_stages=3)
    return Tile(128, 64 if head_dim <= 128 else 32, num_warps=8, num_stages=3)


def mla_tile(rows: int, element_bytes: int) -> Tile:
    """Tile over latent rows (512 + 64 wide), for decode (rows = heads) and prefill (rows = longest query x heads)."""
    if element_bytes == 4:
        return Tile(16, 16, num_warps=8, num_stages=1)
    if rows <= 32:
        return Tile(16, 32, num_warps=4, num_stages=2)
    return Tile(64, 32, num_warps=8, num_stages=2)


def padded(dim: int) -> int:
    """The power of two that a dimension is padded to."""
    return 1 << (dim - 1).bit_length()


def num_splits(programs: int, max_context_tokens: int, slots: int) -> int:
    """Splits of each sequence so that `programs` x splits fill the `slots` the device runs at once.

    It depends on shapes alone, never on lengths, so that a captured graph stays right; empty splits exit at once.
    """
    by_length = -(-max_context_tokens // MIN_SPLIT_TOKENS)
    return max(1, min(slots // programs, by_length, MAX_SPLITS))
