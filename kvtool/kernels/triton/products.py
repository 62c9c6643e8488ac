"""Products with weights on a GPU: for few rows by cuBLAS or by Triton, whichever was faster for that shape here."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import triton
from torch import Tensor
from torch.nn.functional import linear as torch_linear
from triton.runtime.errors import OutOfResources

from kvtool.kernels.choosing import may_time
from kvtool.kernels.triton import checks, gpu
from kvtool.kernels.triton.experts import KERNEL_GATES
from kvtool.kernels.triton.jit.product import gemv_kernel, product_kernel
from kvtool.kernels.triton.rows import gate_halves, rms_norm
from kvtool.kernels.triton.sample import largest
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

if TYPE_CHECKING:
    from kvtool.kernels.weights import Gate

CUBLAS = "cublas"
_SOURCES = (
    "jit/product.py",
    "jit/sample.py",
    "tiles/products.py",
)  # what a verdict is about: other code, other verdicts


@dataclass(frozen=True, eq=False, slots=True)
class Around:
    """What stands around a product: RMSNorm of x by `norm` [K] before it; behind it the `gate` of its halves, of a
    weight [2N,K] that is the gate's over the other. Or of each row only the number of its `largest` column is given."""

    norm: Tensor | None = None
    eps: float = 0.0
    gate: Gate | None = None
    largest: bool = False

    def __str__(self) -> str:
        """What of it a verdict depends on."""
        behind = f" {self.gate.activation}" if self.gate else " largest" if self.largest else ""
        return (" norm" if self.norm is not None else "") + behind

    def in_kernel(self, dtype: torch.dtype, num_rows: int) -> bool:
        """Whether a kernel of ours does it beside the product. What is to be divided by its root mean square may pass
        fp16's range before, where it is rounded for tensor cores."""
        fits = self.norm is None or dtype != torch.float16 or num_rows <= GEMV_ROWS
        return fits and (self.gate is None or self.gate.activation in KERNEL_GATES)


NOTHING = Around()

Product = Callable[[Tensor, Tensor, Tensor | None, Tensor | None, Around], Tensor]


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, plus: Tensor | None = None, around: Around = NOTHING
) -> Tensor:
    """x [T,K], weight [N,K], bias [N], plus [T,N] -> x W^T + bias + plus [T,N], gated [T,N/2], or the largest's number
    int64 [T], the first of equals: the fastest way known.

    Ways are timed while somebody prepares alone, as `kvtool.kernels.choosing` says.
    """
    if len(x) == 0 or len(x) > MAX_ROWS or not x.is_cuda:
        return by_cublas(x, weight, bias, plus, around)
    ways = candidates(len(x), weight, around)
    calls = {name: partial(way, x, weight, bias, plus, around) for name, way in ways.items()}
    timed = may_time() and not torch.cuda.is_current_stream_capturing()
    try:
        fastest = verdicts(x.device).fastest(question(x, weight, bias, plus, around), calls, may_time=timed)
    except torch.OutOfMemoryError:  # no room to time anything now, which says nothing of the next time
        fastest = CUBLAS
    return calls[fastest]()


def candidates(num_rows: int, weight: Tensor, around: Around = NOTHING) -> dict[str, Product]:
    """The ways to multiply so many rows, cuBLAS first."""
    size = weight.element_size()
    found: dict[str, Product] = {CUBLAS: by_cublas}
    if not around.in_kernel(weight.dtype, num_rows):
        return found
    if num_rows <= GEMV_ROWS:
        found |= {name: partial(gemv, tile=tile) for name, tile in gemv_tiles(size).items()}
        if around.norm is not None and weight.dtype == torch.float16:
            return found
    tiles = product_tiles(size, gpu.target(weight.device))
    return found | {name: partial(split_product, tile=tile) for name, tile in tiles.items()}


def question(x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None, around: Around = NOTHING) -> str:
    """What a verdict depends on besides the card: rows up to a power of two, N, K, dtype, and what stands around."""
    rows, (columns, depth) = rules.padded(len(x)), weight.shape
    added = "".join(f" +{name}" for name, there in (("bias", bias), ("plus", plus)) if there is not None)
    return f"{rows}x{columns}x{depth} {str(x.dtype).removeprefix('torch.')}{added}{around}"


def by_cublas(x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None, around: Around = NOTHING) -> Tensor:
    """A launch for each part."""
    x = x if around.norm is None else rms_norm(x, around.norm, around.eps)
    product = torch_linear(x, weight, bias)
    if around.gate is not None:
        product = gate_halves(product, around.gate)
    product = product if plus is None else product.add_(plus)
    return product.max(dim=-1).indices if around.largest else product


def gemv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plus: Tensor | None,
    around: Around = NOTHING,
    *,
    tile: ProductTile,
) -> Tensor:
    """Of up to GEMV_ROWS rows."""
    rows = rules.padded(len(x))
    checks.require(rows <= GEMV_ROWS, f"{len(x)} rows are too many for a GEMV of {GEMV_ROWS}")
    constants = {"ROWS": rows, "STAGES": tile.num_stages}
    return _in_splits(gemv_kernel, constants, x, weight, bias, plus, around, tile, held_rows=tile.block_n)


def split_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plus: Tensor | None,
    around: Around = NOTHING,
    *,
    tile: ProductTile,
) -> Tensor:
    """Of up to MAX_ROWS rows, by `tl.dot`."""
    checks.require(len(x) <= MAX_ROWS, f"{len(x)} rows are too many for a product of {MAX_ROWS}")
    rows = max(16, rules.padded(len(x)))
    constants = {"BLOCK_M": rows, "num_stages": tile.num_stages}
    return _in_splits(product_kernel, constants, x, weight, bias, plus, around, tile, held_rows=tile.block_n + rows)


def _in_splits(
    kernel: triton.JITFunction,
    constants: dict[str, int],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plus: Tensor | None,
    around: Around,
    tile: ProductTile,
    held_rows: int,
) -> Tensor:
    """Grid: (blocks of columns, splits of the depth). `held_rows` of a program's tiles are in shared memory."""
    checks.product(x, weight, bias, plus, around.norm, is_gated=around.gate is not None)
    (num_rows, depth), num_columns, gate = x.shape, len(weight), around.gate
    blocks = math.ceil(num_columns / tile.block_n)
    given = (blocks, torch.int64) if around.largest else (num_columns // 2 if gate else num_columns, x.dtype)
    out = x.new_empty(num_rows, given[0], dtype=given[1])
    splits = tile.splits(num_columns, depth, held_rows * weight.element_size(), gpu.target(x.device))
    partial = arrivals = None
    if splits > 1:
        # The sums, and behind them of each block of columns those of squares.
        partial = x.new_empty(splits * num_rows * (num_columns + blocks), dtype=torch.float32)
        arrivals = gpu.arrivals(x.device, blocks)
    added: dict[str, object] = {
        "bias_ptr": bias,
        "plus_ptr": plus,
        "plus_stride": 0 if plus is None else plus.stride(0),
    }
    added |= {"norm_ptr": around.norm, "eps": around.eps, "ACTIVATION": KERNEL_GATES[gate.activation] if gate else ""}
    added |= {"alpha": float(gate.alpha) if gate else 0.0, "limit": float(gate.limit) if gate else 0.0}
    shape = {"num_rows": num_rows, "num_columns": num_columns, "depth": depth, "num_splits": splits}
    kernel[(blocks, splits)](
        x_ptr=x,
        weight_ptr=weight,
        out_ptr=out,
        partial_ptr=partial,
        arrivals_ptr=arrivals,
        x_stride=x.stride(0),
        weight_stride=weight.stride(0),
        MASKED=depth % tile.block_k != 0,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        BLOCK_SPLITS=SPLITS_AT_ONCE,
        **added,
        **shape,
        **constants,
        **gpu.launched(x.device),
        num_warps=tile.num_warps,
        maxnreg=rules.MAX_REGISTERS,
    )
    return largest(out) if around.largest else out


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
