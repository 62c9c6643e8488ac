"""The tiles of matrix products by Triton, and the splits of their depth. With `configs`, the place to tune."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kvtool.kernels.triton.tiles.rules import REGISTERS, Target

MAX_ROWS = 64  # from here on a product computes as long as it reads, which cuBLAS does best
GEMV_ROWS = 4
MAX_SPLITS = 32
MIN_SPLIT_DEPTH = 256  # a shorter split costs more to merge than it saves
SPLITS_AT_ONCE = 4  # that the last program reads before it adds
MANY_MULTIPROCESSORS = 64
PROGRAM_REGISTERS = 128  # of a thread: what most of these kernels take, as compiled for Hopper


@dataclass(frozen=True)
class ProductTile:
    """block_n rows of a weight, block_k of their elements at a time."""

    block_n: int
    block_k: int
    num_warps: int
    num_stages: int

    def splits(self, num_columns: int, depth: int, row_bytes: int, target: Target) -> int:
        """Of the depth, so that all programs are resident at once and none is empty; `row_bytes` are what a program
        holds in shared memory of one element of depth."""
        blocks = math.ceil(depth / self.block_k)
        programs = math.ceil(num_columns / self.block_n)
        room = self.resident(row_bytes, target) // programs
        most = max(1, min(room, depth // MIN_SPLIT_DEPTH, blocks, MAX_SPLITS))
        return math.ceil(blocks / math.ceil(blocks / most))

    def resident(self, row_bytes: int, target: Target) -> int:
        """Programs that a device runs at once, by shared memory and by registers."""
        shared_bytes = max(1, self.num_stages - 1) * self.block_k * row_bytes
        by_registers = REGISTERS // (32 * self.num_warps * PROGRAM_REGISTERS)
        return target.multiprocessors * max(1, min(target.shared_bytes // shared_bytes, by_registers))


def gemv_tiles(element_bytes: int) -> dict[str, ProductTile]:
    """For up to GEMV_ROWS rows: 16 bytes a thread and load, four loads of weights in a row or more."""
    width = 16 // element_bytes * 32  # elements that a warp loads at once
    return {
        "gemv-wide": ProductTile(block_n=4, block_k=4 * width, num_warps=4, num_stages=3),
        "gemv-tall": ProductTile(block_n=16, block_k=width, num_warps=4, num_stages=3),
    }


def pair_tile(element_bytes: int, target: Target) -> ProductTile:
    """For the pairs of a few tokens with their experts, a row each: the narrower, the more multiprocessors read."""
    width = 16 // element_bytes * 32
    block_n = 8 if target.multiprocessors >= MANY_MULTIPROCESSORS else 16
    return ProductTile(block_n=block_n, block_k=2 * width, num_warps=4, num_stages=3)


def route_tile() -> ProductTile:
    """Of the few rows of a router's weight, fp32: so narrow that they spread over many multiprocessors."""
    return ProductTile(block_n=4, block_k=512, num_warps=4, num_stages=3)


def product_tiles(element_bytes: int, target: Target) -> dict[str, ProductTile]:
    """For up to MAX_ROWS rows; fp32 has no tensor cores, and small tiles."""
    if element_bytes == 4:
        return {"split": ProductTile(block_n=32, block_k=32, num_warps=4, num_stages=2)}
    roomy = target.shared_bytes > 128 * 1024
    return {
        "split": ProductTile(block_n=64, block_k=128, num_warps=4, num_stages=4 if roomy else 3),
        "split-narrow": ProductTile(block_n=32, block_k=128, num_warps=4, num_stages=4 if roomy else 3),
    }


@dataclass(frozen=True)
class ExpertTile(ProductTile):
    """The same for blocks of block_m rows of one expert."""

    block_m: int


def expert_rows(pairs: int, num_experts: int, element_bytes: int) -> int:
    """Rows of a block: about what an expert has, if tokens spread evenly."""
    average = pairs / num_experts
    if element_bytes == 4:
        return 16
    return 16 if average <= 16 else 64 if average <= 64 else 128


def expert_tile(
    block_m: int, num_columns: int, num_blocks: int, element_bytes: int, target: Target, *, is_gated: bool
) -> ExpertTile:
    """Of few rows as many programs as multiprocessors, or the weights are not read by all of the card. Of many rows
    a large accumulator, whose half belongs to the other product where it is gated."""
    if element_bytes == 4:
        return ExpertTile(32, 32, 4, 2, block_m)
    roomy = target.shared_bytes > 128 * 1024
    if block_m == 16:
        narrow = num_blocks * math.ceil(num_columns / 64) < target.multiprocessors
        return ExpertTile(32 if narrow else 64, 128, 4, 4 if roomy else 3, block_m)
    block_n = 64 if is_gated or block_m == 64 else 128
    return ExpertTile(block_n, 64, 4 if block_m == 64 else 8, 4 if roomy else 3, block_m)


def block_bound(pairs: int, num_experts: int, block_m: int) -> int:
    """The most blocks that `pairs` can make: one that is not full for each expert, and full ones."""
    return min(pairs, pairs // block_m + num_experts)
