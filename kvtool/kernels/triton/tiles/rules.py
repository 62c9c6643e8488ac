"""The tile each Triton kernel runs with, and the splits decode divides a sequence into: rules for any card.

What was timed on a card (`tuned`) goes before the rules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

MAX_SPLITS = 64
MIN_SPLIT_TOKENS = 128  # a shorter split costs more to merge than it saves
MERGE_REGISTERS = 64  # of a thread, that hold the partial outputs of as many splits as are merged at once
MERGED_BYTES = 160 * 1024  # that one program reads in about the time of a launch, 2 us at 80 GB/s
TMA_ALIGNMENT = 16  # bytes, of everything that a TMA descriptor strides over
SAMPLED_BLOCK = 4096  # probabilities that a program looks at at once
LARGEST_BLOCK = 8192  # and keys of blocks of logits
STORE_BLOCK = 1024  # elements of one store program
PLACE_ROWS = 32  # decode rows that one program places: a warp
ROTARY_HEADS = 16  # whose rotary part one program turns
ABSORBED_COLUMNS = 64  # of a head's absorbed query, that one program computes
GATHER_BLOCK = 4096  # elements of one gather program: enough loads in flight to be bound by memory
MAX_REGISTERS = 255  # a thread's limit, said aloud: left to itself ptxas spills a little to fit in more programs
REGISTERS = 65536  # of a multiprocessor
DECODE_REGISTERS = 168  # 4 warps of so many leave room for three programs
LATENT_REGISTERS = 128  # and 8 warps of so many for two


MAX_SHAPE_ROWS = 256  # more rows than the tallest tile has are all alike


@dataclass(frozen=True)
class Shape:
    """What calls have in common that run with one tile. Dimensions and rows are padded to powers of two."""

    operation: str  # decode | prefill
    head_dim: int
    rope_dim: int
    rows: int
    query_bytes: int
    cache_bytes: int
    page: int


@dataclass(frozen=True)
class Tile:
    """block_m query rows against block_n keys at a time.

    `by_descriptor` says whether TMA loads the keys, where it can, and `programs` how many decode programs of a
    multiprocessor the splits of sequences are made for; None and 0 leave that to the rules. A decode that `lists` what
    there is to do gives long sequences more splits than short ones, and one by `integers` rounds queries and weights to
    int8, to multiply them with an int8 cache as it lies.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    max_registers: int = MAX_REGISTERS
    by_descriptor: bool | None = None
    programs: int = 0
    lists: bool = False
    integers: bool = False

    @property
    def fault(self) -> str | None:
        """Why no kernel can run with it, or None."""
        for name in ("block_m", "block_n"):
            if getattr(self, name) < 16 or padded(getattr(self, name)) != getattr(self, name):
                return f"has {name} {getattr(self, name)}, which is no power of two from 16 on"
        if self.num_warps not in (1, 2, 4, 8, 16):
            return f"has {self.num_warps} warps, which is not 1, 2, 4, 8 or 16"
        limits = {"num_stages": (1, 8), "max_registers": (32, MAX_REGISTERS), "programs": (0, 16)}
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                return f"has {name} {getattr(self, name)}, which is not within {least} and {most}"
        return None

    @property
    def min_tiles(self) -> int:
        """Tiles of the shortest split."""
        return max(1, MIN_SPLIT_TOKENS // self.block_n)

    @property
    def is_small(self) -> bool:
        """Few enough rows that a program's registers leave room for two more."""
        return self.num_warps == 4 and self.block_m == 16

    def decode_registers(self, page: int, *, vector_scales: bool = False, split: bool = True) -> int:
        """A thread's limit in decode. A 16-bit tile of 4 warps can do with less where it lies within one page, and one
        of latents where a sequence is split: whole ones, of so many sequences, fill the device anyway."""
        if self.is_small and self.block_n == 64 and page % self.block_n == 0 and not vector_scales:
            return DECODE_REGISTERS
        return self.max_registers if split else MAX_REGISTERS

    def uses_tma(
        self, head_dim: int, page: int, cache_bytes: int, target: Target, *, vector_scales: bool = False
    ) -> bool:
        """Whether a tile is one box of a page, on a card that copies boxes, with registers left for it.

        Where the tile does not say: fp32 has no tensor cores to keep fed; tall tiles of wide heads, or of scales to
        load beside the vectors, spill where loads are not masked as they come; so do those that are to leave registers
        to another program.
        """
        can = target.capability >= 90 and page % self.block_n == 0
        if self.by_descriptor is not None:
            return can and self.by_descriptor
        tallest = 16 if head_dim > 128 else 64 if vector_scales else 128
        suits = cache_bytes < 4 and self.block_n >= 32 and self.block_m <= tallest
        return can and suits and self.max_registers == MAX_REGISTERS

    def resident_programs(self, bytes_per_key: int, target: Target) -> int:
        """How many decode programs a device is to run at once: as many as the tile says, else as the shared memory of
        their tiles and registers have room for."""
        if self.programs:
            return target.multiprocessors * self.programs
        tiles = max(1, self.num_stages - 1) * self.block_n + self.block_m
        registers = DECODE_REGISTERS if self.is_small else self.max_registers
        by_registers = REGISTERS // (32 * self.num_warps * registers)
        return target.multiprocessors * max(1, min(target.shared_bytes // (tiles * bytes_per_key), by_registers))


class Tiles(Protocol):
    """Tiles by shape, as a dict of them."""

    def get(self, shape: Shape, rule: Tile, /) -> Tile:
        """The tile for the shape, or the rules' own."""


@dataclass(frozen=True)
class Target:
    """What of a device the choice of tile and grid depends on; `tuned` holds tiles that were timed on it."""

    capability: int  # 80, 90, ...
    multiprocessors: int
    shared_bytes: int  # that one program may use
    tuned: Tiles = field(default_factory=dict[Shape, Tile])

    @property
    def multiplies_from_shared_memory(self) -> bool:
        """wgmma and its successor on data-centre cards; elsewhere both operands sit in registers."""
        return self.capability in (90, 100, 103)


def decode_tile(head_dim: int, rows: int, query_bytes: int, cache_bytes: int, target: Target) -> Tile:
    """As `attention_tile`. Decode walks the keys in one loop, which leaves latents of 16 bits room for more.

    Few heads are bound by memory: two programs in a multiprocessor keep more loads in flight. Many are multiplied by
    wgmma, and read a latent once for 64 of them.
    """
    if head_dim > 256 and query_bytes == cache_bytes == 2:
        if rows > 32 and target.capability == 90:
            return Tile(64, 32, num_warps=8, num_stages=4)
        if rows <= 16:
            num_stages = 3 if target.shared_bytes > 128 * 1024 else 2
            return Tile(16, 32, num_warps=8, num_stages=num_stages, max_registers=LATENT_REGISTERS)
    return attention_tile(head_dim, rows, query_bytes, cache_bytes, target)


def attention_tile(
    head_dim: int, rows: int, query_bytes: int, cache_bytes: int, target: Target, rope_dim: int = 0
) -> Tile:
    """The tile for `rows` query rows over keys of `head_dim` (padded; MLA: of the latent), by the bytes of an element;
    of MLA a rotary part of `rope_dim` goes beside them.

    `rows` is the group of one KV head in decode, times the longest query in prefill. The accumulator, of block_m x
    head_dim values, is what fills the registers: up to 4096 suit 4 warps, up to 16384 suit 8.
    """
    if max(query_bytes, cache_bytes) == 4:  # no tensor cores: fp32 is multiplied exactly, in small tiles
        return Tile(16, 16, num_warps=4 if head_dim <= 64 else 8, num_stages=2 if head_dim <= 256 else 1)
    blocks = _row_blocks(head_dim, cache_bytes, target)
    block_m = next((m for m in blocks if rows <= m), blocks[-1])
    return Tile(
        block_m,
        _block_keys(head_dim, block_m),
        num_warps=4 if block_m * head_dim <= 4096 and head_dim <= 128 else 8,
        num_stages=3 if head_dim + rope_dim <= 128 or target.shared_bytes > 128 * 1024 else 2,
    )


def _row_blocks(head_dim: int, cache_bytes: int, target: Target) -> tuple[int, ...]:
    """Row counts to choose from, as many as leave nothing to spill. From 64 on, Hopper multiplies with wgmma."""
    if head_dim > 256:
        return (16,) if cache_bytes == 1 else (16, 32)  # to convert fp8 takes registers too
    if head_dim <= 64 or (head_dim <= 128 and target.multiplies_from_shared_memory):
        return (16, 64, 128)
    return (16, 64)


def _block_keys(head_dim: int, block_m: int) -> int:
    if head_dim <= 128:
        return 64
    return 32 if head_dim <= 256 or block_m == 16 else 16


def num_splits(programs: int, max_context_tokens: int, resident_programs: int) -> int:
    """Splits of each sequence, so that `programs` x splits are all resident at once.

    Shapes alone decide, never lengths, so that a captured graph stays right; splits left empty exit at once.
    """
    by_length = math.ceil(max_context_tokens / MIN_SPLIT_TOKENS)
    return max(1, min(resident_programs // programs, by_length, MAX_SPLITS))


def num_items(num_seqs: int, programs: int, resident_programs: int) -> int:
    """Of a list of what there is to do, for `programs` a sequence: one for each sequence, and for the tokens as many as
    are resident at once, or as there are sequences."""
    return num_seqs + max(num_seqs, resident_programs // programs)


def merges_alone(rows: int, splits: int, v_dim: int) -> bool:
    """Whether the last program to arrive merges `rows` rows itself: what a launch costs is more than a few reads of
    one multiprocessor, but not than those of the many rows of MLA."""
    return rows * splits * v_dim * 4 <= MERGED_BYTES


def merged_at_once(values: int, num_warps: int) -> int:
    """Splits whose partial outputs of so many fp32 values a program holds in MERGE_REGISTERS."""
    return max(1, min(MAX_SPLITS, MERGE_REGISTERS * 32 * num_warps // values))


def padded(dim: int) -> int:
    """The power of two that a dimension is padded to."""
    return 1 << (dim - 1).bit_length()
