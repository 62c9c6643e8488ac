"""What the attention kernels share: walking the block table, the online softmax, dividing a sequence into splits."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

# The running maximum starts at a finite floor, so that a row that has seen no key yet gives exp2(-inf) = 0, never NaN.
FLOOR = tl.constexpr(-1e30)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def dot(a, b):
    """a @ b in fp32, never TF32, of int8 in int32. The interpreter cannot multiply bf16, so there the operands go up
    first."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def widened(x, dtype: tl.constexpr):
    """Stored values in the queries' dtype; from int8 by way of fp32, as a GPU does, for the interpreter's sake."""
    if x.dtype == tl.int8 and dtype != tl.int8:
        x = x.to(tl.float32)
    return x.to(dtype)


@triton.jit
def weighted(weights, v):
    """weights [M, N] from 0 on times v [N, DV] in fp32. With int8 v the weights are int8 too, in steps of their row's
    largest."""
    if v.dtype == tl.int8:
        largest = tl.max(weights, 1)
        step = tl.where(largest == 0.0, 1.0, largest) / 127.0
        steps = tl.floor(weights / step[:, None] + 0.5).to(tl.int8)
        out = dot(steps, v).to(tl.float32) * step[:, None]
    else:
        out = dot(weights.to(v.dtype), v)
    return out


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
def page_tiles(
    ptr, num_pages, page_stride, slot_stride, DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr,
    PAGE: tl.constexpr,
):
    """A TMA descriptor of one head's rows [P, PAGE, DIM], read BLOCK_N slots of a page at a time; past DIM are zeros.

    Its coordinates count pages and slots, so no offset can overflow.
    """
    return tl.make_tensor_descriptor(ptr, [num_pages, PAGE, DIM], [page_stride, slot_stride, 1], [1, BLOCK_N, BLOCK])


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
def load_scales(scale_ptrs, inside, MASKED: tl.constexpr):
    """The scales of the keys at scale_ptrs [N]; beside an unused slot lies anything."""
    return tl.load(scale_ptrs, mask=inside, other=0.0) if MASKED else tl.load(scale_ptrs)


@triton.jit
def tanh(x):
    """By exp2, which is fast and, kept from overflowing, right at both ends."""
    return 1.0 - 2.0 / (tl.exp2(tl.minimum(x * (2 * LOG2E), 126.0)) + 1.0)


@triton.jit
def first_softmax(sinks_ptr, head, is_row, BLOCK_M: tl.constexpr):
    """Running maximum and sum of rows that have seen no key: nothing, or the sink of their head [BLOCK_M]."""
    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + head, mask=is_row, other=0.0).to(tl.float32)
        row_max = tl.maximum(sink * LOG2E, FLOOR)
        row_sum = tl.full([BLOCK_M], 1.0, tl.float32)
    else:
        row_max = tl.full([BLOCK_M], FLOOR, tl.float32)
        row_sum = tl.zeros([BLOCK_M], tl.float32)
    return row_max, row_sum


@triton.jit
def attend(
    acc, row_max, row_sum, q, q_rope, position,
    k_ptr, v_ptr, rope_ptr, k_scale_ptr, v_scale_ptr, rope_scale_ptr, table_ptr,
    first_tile, last_tile, first_key, end_key, window, qk_scale, v_gain, cap,
    k_page_stride, k_slot_stride, v_page_stride, v_slot_stride, rope_page_stride, rope_slot_stride,
    scale_page_stride, scale_slot_stride, num_pages,
    CAPPED: tl.constexpr, TMA: tl.constexpr, MASKED: tl.constexpr, HEAD_DIM: tl.constexpr, V_DIM: tl.constexpr,
    ROPE_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_ROPE: tl.constexpr,
    BLOCK_N: tl.constexpr, PAGE: tl.constexpr,
):
    """Fold the tiles first_tile .. last_tile-1 into the running (acc, row_max, row_sum) of the rows of q.

    MLA keys have a part [P, B, ROPE_DIM] that all heads share. Without v_ptr keys are latents, and the tile, loaded
    once, is key and value. Keys outside [first_key, end_key) are seen by no row, may lie in recycled memory, and are
    read as zeros. With k_scale_ptr each key has its own scale, and so has each value: v_gain makes those of order 1,
    for fp16's few digits. With q of int8 keys and values of int8 are multiplied as they are.
    """
    if TMA:
        k_tiles = page_tiles(k_ptr, num_pages, k_page_stride, k_slot_stride, HEAD_DIM, BLOCK_D, BLOCK_N, PAGE)
        if rope_ptr is not None:
            rope_tiles = page_tiles(
                rope_ptr, num_pages, rope_page_stride, rope_slot_stride, ROPE_DIM, BLOCK_ROPE, BLOCK_N, PAGE
            )
        if v_ptr is not None:
            v_tiles = page_tiles(v_ptr, num_pages, v_page_stride, v_slot_stride, V_DIM, BLOCK_DV, BLOCK_N, PAGE)
    pages = load_pages(table_ptr, first_tile, first_key, end_key, PAGE, BLOCK_N)
    # What is masked after it came passes through shared memory once more: there is room for that without a pipeline.
    STAGES: tl.constexpr = 1 if TMA and MASKED else None
    for tile in tl.range(first_tile, last_tile, num_stages=STAGES):
        # The next tile's page id is fetched now: a block-table load in front of K and V would hold up their pipeline.
        next_pages = load_pages(table_ptr, tile + 1, first_key, end_key, PAGE, BLOCK_N)
        key = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = (key >= first_key) & (key < end_key)
        page = pages.to(tl.int64)  # page * stride passes 2**31 in a pool of a few GB
        slot = tile * BLOCK_N % PAGE
        if TMA:
            k = k_tiles.load([pages, slot, 0]).reshape(BLOCK_N, BLOCK_D)
        else:
            k_ptrs = k_ptr + page * k_page_stride + (key % PAGE) * k_slot_stride
            k = load_rows(k_ptrs, inside, HEAD_DIM, BLOCK_D, MASKED)
        k = widened(k, q.dtype)
        scores = dot(q, tl.trans(k)).to(tl.float32)
        scale_at = page * scale_page_stride + (key % PAGE) * scale_slot_stride
        if k_scale_ptr is not None:
            scores *= load_scales(k_scale_ptr + scale_at, inside, MASKED)[None, :]
        if rope_ptr is not None:
            if TMA:
                k_rope = rope_tiles.load([pages, slot, 0]).reshape(BLOCK_N, BLOCK_ROPE)
            else:
                rope_ptrs = rope_ptr + page * rope_page_stride + (key % PAGE) * rope_slot_stride
                k_rope = load_rows(rope_ptrs, inside, ROPE_DIM, BLOCK_ROPE, MASKED)
            turned = dot(q_rope, tl.trans(widened(k_rope, q.dtype))).to(tl.float32)
            if rope_scale_ptr is not None:
                turned *= load_scales(rope_scale_ptr + scale_at, inside, MASKED)[None, :]
            scores += turned
        if v_ptr is None:
            v = k
        else:
            if TMA:
                v = v_tiles.load([pages, slot, 0]).reshape(BLOCK_N, BLOCK_DV)
            else:
                v_ptrs = v_ptr + page * v_page_stride + (key % PAGE) * v_slot_stride
                v = load_rows(v_ptrs, inside, V_DIM, BLOCK_DV, MASKED)
            v = widened(v, q.dtype)
        if TMA and MASKED and q.dtype != tl.int8:  # the box holds whole rows, unused slots too: 0 * NaN is NaN
            v = tl.where(inside[:, None], v, 0.0)
        scores *= qk_scale
        if CAPPED:
            scores = cap * tanh(scores)
        if MASKED:
            visible = key[None, :] <= position[:, None]
            if v_ptr is not None:  # latents have no window
                visible &= key[None, :] > position[:, None] - window
            scores = tl.where(visible, scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        weights = tl.exp2(scores - new_max[:, None])
        decay = tl.exp2(row_max - new_max)
        row_sum = row_sum * decay + tl.sum(weights, 1)
        if v_scale_ptr is not None:
            weights *= (v_gain * load_scales(v_scale_ptr + scale_at, inside, MASKED))[None, :]
        acc = acc * decay[:, None] + weighted(weights, v)
        row_max = new_max
        pages = next_pages
    return acc, row_max, row_sum


@triton.jit
def normalise(acc, row_sum, v_scale):
    """The rows' outputs; a row that saw no key is zeros."""
    return acc * (v_scale / tl.where(row_sum == 0.0, 1.0, row_sum))[:, None]


@triton.jit
def split_tiles(split, length, span, num_splits, BLOCK_N: tl.constexpr, MIN_TILES: tl.constexpr):
    """First and one past the last tile of a split of the last `span` keys, MIN_TILES or more: a short sequence leaves
    its last splits empty."""
    first = tl.maximum(length - span, 0) // BLOCK_N
    last = tl.cdiv(length, BLOCK_N)
    tiles_per_split = tl.maximum(tl.cdiv(last - first, num_splits), MIN_TILES)
    begin = first + split * tiles_per_split
    return begin, tl.minimum(begin + tiles_per_split, last)


@triton.jit
def used_splits(length, span, num_splits, BLOCK_N: tl.constexpr, MIN_TILES: tl.constexpr):
    """How many splits have tiles; of an empty sequence the first counts."""
    first, end = split_tiles(0, length, span, num_splits, BLOCK_N, MIN_TILES)
    return tl.maximum(tl.cdiv(tl.cdiv(length, BLOCK_N) - first, tl.maximum(end - first, 1)), 1)


@triton.jit
def listed_share(
    lens_ptr, item, num_seqs, span, BLOCK_SEQS: tl.constexpr, BLOCK_N: tl.constexpr, MIN_TILES: tl.constexpr
):
    """The item-th share of a batch of up to BLOCK_SEQS sequences, whose tiles are divided in equal shares, one at least
    of each sequence: its sequence and that one's length, which share of it, its tiles, the sequence's first item, and
    how many it has. A grid of W items has W - num_seqs of them for the tiles, and the others for what sequences round
    up; an item behind the last share is one more of a sequence, without tiles.
    """
    each = tl.arange(0, BLOCK_SEQS)
    lens = tl.load(lens_ptr + each, mask=each < num_seqs, other=0)
    first = tl.maximum(lens - span, 0) // BLOCK_N
    tiles = tl.cdiv(lens, BLOCK_N) - first
    per_share = tl.maximum(tl.cdiv(tl.sum(tiles, 0), tl.num_programs(0) - num_seqs), MIN_TILES)
    shares = tl.where(each < num_seqs, tl.maximum(tl.cdiv(tiles, per_share), 1), 0)
    seq = tl.minimum(tl.sum((tl.cumsum(shares, 0) <= item).to(tl.int32), 0), num_seqs - 1)
    first_item = tl.sum(tl.where(each < seq, shares, 0), 0)
    here = each == seq
    last = tl.sum(tl.where(here, first + tiles, 0), 0)
    begin = tl.sum(tl.where(here, first, 0), 0) + (item - first_item) * per_share
    end = tl.minimum(begin + per_share, last)
    length = tl.sum(tl.where(here, lens, 0), 0)
    return seq.to(tl.int64), length, item - first_item, begin, end, first_item, tl.sum(tl.where(here, shares, 0), 0)
