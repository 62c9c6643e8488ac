"""What the attention kernels share: walking the block table, the online softmax, dividing a sequence into splits."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

# The running maximum starts at a finite floor, so that a row that has seen no key yet gives exp2(-inf) = 0, never NaN.
FLOOR = tl.constexpr(-1e30)


@triton.jit
def dot(a, b):
    """a @ b in fp32, never TF32. The interpreter cannot multiply bf16, so there the operands go up first."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def load_pages(table_ptr, tile, first_key, end_key, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):
    """The physical page of a tile: one id where the tile lies within a page, else one for each of its keys."""
    if PAGE % BLOCK_N == 0:
        key = tile * BLOCK_N
        inside = key < end_key
    else:
        key = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = (key >= first_key) & (key < end_key)
    return tl.load(table_ptr + key // PAGE, mask=inside, other=0)


@triton.jit
def load_rows(row_ptrs, inside, DIM: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    """The rows at row_ptrs [N] -> [N, BLOCK]; columns from DIM on are zero, and so are rows not `inside` if MASKED."""
    column = tl.arange(0, BLOCK)
    ptrs = row_ptrs[:, None] + column[None, :]
    if MASKED and DIM < BLOCK:
        rows = tl.load(ptrs, mask=inside[:, None] & (column < DIM)[None, :], other=0.0)
    elif MASKED:
        rows = tl.load(ptrs, mask=inside[:, None], other=0.0)
    elif DIM < BLOCK:
        rows = tl.load(ptrs, mask=(column < DIM)[None, :], other=0.0)
    else:
        rows = tl.load(ptrs)
    return rows


@triton.jit
def attend(
    acc, row_max, row_sum, q, q_rope, position,
    k_ptr, v_ptr, table_ptr, first_tile, last_tile, first_key, end_key, window, qk_scale,
    k_page_stride, k_slot_stride, v_page_stride, v_slot_stride,
    MASKED: tl.constexpr, HEAD_DIM: tl.constexpr, V_DIM: tl.constexpr, ROPE_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr, BLOCK_ROPE: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr,
):
    """Fold the tiles first_tile .. last_tile-1 into the running (acc, row_max, row_sum) of the rows of q.

    ROPE_DIM > 0 is MLA: a stored row is [latent | rotary key], and the latent tile, loaded once, is key and value.
    Keys outside [first_key, end_key) are seen by no row, may lie in recycled memory, and are read as zeros.
    """
    pages = load_pages(table_ptr, first_tile, first_key, end_key, PAGE, BLOCK_N)
    for tile in range(first_tile, last_tile):
        # The next tile's page id is fetched now: a block-table load in front of K and V would hold up their pipeline.
        next_pages = load_pages(table_ptr, tile + 1, first_key, end_key, PAGE, BLOCK_N)
        key = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = (key >= first_key) & (key < end_key)
        page = pages.to(tl.int64)  # page * stride passes 2**31 in a pool of a few GB
        k_ptrs = k_ptr + page * k_page_stride + (key % PAGE) * k_slot_stride
        k = load_rows(k_ptrs, inside, HEAD_DIM, BLOCK_D, MASKED).to(q.dtype)
        scores = dot(q, tl.trans(k))
        if ROPE_DIM > 0:
            k_rope = load_rows(k_ptrs + HEAD_DIM, inside, ROPE_DIM, BLOCK_ROPE, MASKED).to(q.dtype)
            scores += dot(q_rope, tl.trans(k_rope))
            v = k
        else:
            v_ptrs = v_ptr + page * v_page_stride + (key % PAGE) * v_slot_stride
            v = load_rows(v_ptrs, inside, V_DIM, BLOCK_DV, MASKED).to(q.dtype)
        scores *= qk_scale
        if MASKED:
            visible = (key[None, :] <= position[:, None]) & (key[None, :] > position[:, None] - window)
            scores = tl.where(visible, scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        weights = tl.exp2(scores - new_max[:, None])
        decay = tl.exp2(row_max - new_max)
        row_sum = row_sum * decay + tl.sum(weights, 1)
        acc = acc * decay[:, None] + dot(weights.to(q.dtype), v)
        row_max = new_max
        pages = next_pages
    return acc, row_max, row_sum


@triton.jit
def normalise(acc, row_sum, v_scale):
    """The rows' outputs; a row that saw no key is zeros."""
    return acc * (v_scale / tl.where(row_sum == 0.0, 1.0, row_sum))[:, None]


@triton.jit
def split_tiles(split, length, window, num_splits, BLOCK_N: tl.constexpr, MIN_TILES: tl.constexpr):
    """First and one past the last tile of a split, MIN_TILES or more: a short sequence leaves its last splits empty."""
    first = tl.maximum(length - window, 0) // BLOCK_N
    last = tl.cdiv(length, BLOCK_N)
    tiles_per_split = tl.maximum(tl.cdiv(last - first, num_splits), MIN_TILES)
    begin = first + split * tiles_per_split
    return begin, tl.minimum(begin + tiles_per_split, last)
