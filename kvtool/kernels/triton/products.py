"""Products with weights on a GPU: for few rows by cuBLAS or by Triton, whichever was faster for that shape here."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import triton
from torch import Tensor
from torch.nn.functional import linear as torch_linear
from triton.runtime.errors import OutOfResources

from kvtool.kernels.choosing import may_time
from kvtool.kernels.triton import checks, gpu
from kvtool.kernels.triton.jit.product import add_splits_kernel, gemv_kernel, product_kernel
from kvtool.kernels.triton.tiles import rules
from kvtool.kernels.triton.tiles.cold_time import cold_time_ms
from kvtool.kernels.triton.tiles.products import (
    GEMV_ROWS,
    MAX_ROWS,
    SPLITS_AT_ONCE,
    ProductTile,
    gemv_tiles,
    product_tiles,
)
from kvtool.kernels.triton.tiles.verdict import Verdicts
from kvtool.system.compiled import cache_folder

CUBLAS = "cublas"
_SOURCES = ("jit/product.py", "tiles/products.py")  # what a verdict is about: other code, other verdicts

Product = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
    """x [T,K], weight [N,K], bias [N], plus [T,N] -> x W^T + bias + plus [T,N], the fastest way known.

    Ways are timed while somebody prepares alone, as `kvtool.kernels.choosing` says.
    """
    if len(x) == 0 or len(x) > MAX_ROWS or not x.is_cuda:
        return by_cublas(x, weight, bias, plus)
    ways = candidates(len(x), weight)
    calls = {name: partial(way, x, weight, bias, plus) for name, way in ways.items()}
    timed = may_time() and not torch.cuda.is_current_stream_capturing()
    try:
        fastest = verdicts(x.device).fastest(question(x, weight, bias, plus), calls, may_time=timed)
    except torch.OutOfMemoryError:  # no room to time anything now, which says nothing of the next time
        fastest = CUBLAS
    return calls[fastest]()


def candidates(num_rows: int, weight: Tensor) -> dict[str, Product]:
    """The ways to multiply so many rows, cuBLAS first."""
    size = weight.element_size()
    found: dict[str, Product] = {CUBLAS: by_cublas}
    if num_rows <= GEMV_ROWS:
        found |= {name: partial(gemv, tile=tile) for name, tile in gemv_tiles(size).items()}
    tiles = product_tiles(size, gpu.target(weight.device))
    return found | {name: partial(split_product, tile=tile) for name, tile in tiles.items()}


def question(x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None) -> str:
    """What a verdict depends on besides the card: rows up to a power of two, N, K, dtype, and what is added."""
    rows, (columns, depth) = rules.padded(len(x)), weight.shape
    added = "".join(f" +{name}" for name, there in (("bias", bias), ("plus", plus)) if there is not None)
    return f"{rows}x{columns}x{depth} {str(x.dtype).removeprefix('torch.')}{added}"


def by_cublas(x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None) -> Tensor:
    product = torch_linear(x, weight, bias)
    return product if plus is None else product.add_(plus)


def gemv(x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None, *, tile: ProductTile) -> Tensor:
    """Of up to GEMV_ROWS rows."""
    rows = rules.padded(len(x))
    checks.require(rows <= GEMV_ROWS, f"{len(x)} rows are too many for a GEMV of {GEMV_ROWS}")
    constants = {"ROWS": rows, "STAGES": tile.num_stages}
    return _in_splits(gemv_kernel, constants, x, weight, bias, plus, tile, rows, held_rows=tile.block_n)


def split_product(x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None, *, tile: ProductTile) -> Tensor:
    """Of up to MAX_ROWS rows, by `tl.dot`."""
    checks.require(len(x) <= MAX_ROWS, f"{len(x)} rows are too many for a product of {MAX_ROWS}")
    rows = max(16, rules.padded(len(x)))
    constants = {"BLOCK_M": rows, "num_stages": tile.num_stages}
    return _in_splits(product_kernel, constants, x, weight, bias, plus, tile, rows, held_rows=tile.block_n + rows)


def _in_splits(
    kernel: triton.JITFunction,
    constants: dict[str, int],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plus: Tensor | None,
    tile: ProductTile,
    block_m: int,
    held_rows: int,
) -> Tensor:
    """Grid: (blocks of columns, splits of the depth). `held_rows` of a program's tiles are in shared memory."""
    checks.product(x, weight, bias, plus)
    (num_rows, depth), num_columns = x.shape, len(weight)
    out = x.new_empty(num_rows, num_columns)
    blocks = math.ceil(num_columns / tile.block_n)
    splits = tile.splits(num_columns, depth, held_rows * weight.element_size(), gpu.target(x.device))
    partial = arrivals = None
    if splits > 1:
        partial = x.new_empty(splits, num_rows, num_columns, dtype=torch.float32)
        arrivals = gpu.arrivals(x.device, blocks)
    added = {"bias_ptr": bias, "plus_ptr": plus, "plus_stride": 0 if plus is None else plus.stride(0)}
    shape = {"num_rows": num_rows, "num_columns": num_columns, "num_splits": splits}
    kernel[(blocks, splits)](
        x_ptr=x,
        weight_ptr=weight,
        out_ptr=out,
        partial_ptr=partial,
        arrivals_ptr=arrivals,
        depth=depth,
        x_stride=x.stride(0),
        weight_stride=weight.stride(0),
        MASKED=depth % tile.block_k != 0,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        BLOCK_SPLITS=SPLITS_AT_ONCE,
        **added,
        **shape,
        **constants,
        num_warps=tile.num_warps,
        maxnreg=rules.MAX_REGISTERS,
    )
    if partial is not None and arrivals is None:
        blocks_of = {"BLOCK_M": block_m, "BLOCK_N": tile.block_n, "BLOCK_SPLITS": SPLITS_AT_ONCE}
        add_splits_kernel[(blocks,)](
            partial_ptr=partial, out_ptr=out, **added, **shape, **blocks_of, num_warps=tile.num_warps
        )
    return out


@functools.cache
def verdicts(device: torch.device) -> Verdicts:
    """The card's, of these versions of everything that has a part in them."""
    name = f"{torch.cuda.get_device_name(device)}-torch{torch.__version__}-triton{triton.__version__}"
    folder = Path(__file__).parent
    sources = hashlib.sha256(b"".join((folder / source).read_bytes() for source in _SOURCES)).hexdigest()[:12]
    try:
        kept = cache_folder()
    except OSError:
        kept = Path(os.devnull)  # a folder that cannot be written: they are timed again
    file = kept / f"products-{re.sub(r'[^A-Za-z0-9.+]+', '-', name)}-{sources}.json"
    return Verdicts(file, partial(_time_ms, device=device))


def _time_ms(call: Callable[[], object], device: torch.device) -> float:
    """A tile that a card has no room for never wins."""
    try:
        return cold_time_ms(call, device)
    except OutOfResources:
        return math.inf
