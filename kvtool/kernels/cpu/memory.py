"""Weights in the order in which the compiled kernels read them, in memory that streams well."""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

ROW = 32  # every row is a multiple of so many elements
HUGE_PAGE_BYTES = 2 << 20


def packed(weight: Tensor) -> Tensor:
    """A weight [out, in] as [out / 32, in / 2, 2, 16, 2]: even outputs, then odd ones, two inputs each."""
    rows, columns = weight.shape
    by_block = weight.view(rows // ROW, ROW // 2, 2, columns // 2, 2).permute(0, 3, 2, 1, 4)
    return huge_pages(torch.empty(by_block.shape, dtype=weight.dtype)).copy_(by_block)


def huge_pages(tensor: Tensor) -> Tensor:
    """A tensor of memory not yet written, which Linux is asked to give in pages of 2 MiB: a stream of weights crosses
    a page of 4 KiB every 100 ns, and waits for its address. Elsewhere nothing changes."""
    if tensor.device.type != "cpu" or tensor.nbytes < HUGE_PAGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return tensor
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    madvise(start, stop - start, mmap.MADV_HUGEPAGE)  # advice: a refusal costs speed alone
    return tensor
