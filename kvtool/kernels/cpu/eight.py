"""The compiled kernels of a cache of 8 bits, `c/eight.c`: bf16 rows in, attention of bf16 queries out."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from kvtool.kernels.cpu.memory import ROW
from kvtool.kernels.cpu.native import TOKENS_AT_ONCE, library
from kvtool.kernels.pages import Pages, Scale
from kvtool.kernels.rows import Rows, Softmax

KINDS = {torch.int8: 0, torch.float8_e4m3fn: 1, torch.float8_e5m2: 2}
LARGEST_DIM = 512  # as in eight.c

_POINTER, _COUNT, _NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class _Store8(ctypes.Structure):
    """`Store8` of eight.c."""

    _fields_ = (
        *(("rows", _POINTER), ("row", _COUNT), ("slots", _POINTER), ("cache", _POINTER), ("page", _COUNT)),
        *(("slot", _COUNT), ("block", _COUNT), ("scales", _POINTER), ("scale", _NUMBER), ("count", _COUNT)),
        *(("heads", _COUNT), ("dim", _COUNT), ("kind", _COUNT)),
    )


class _Cache8(ctypes.Structure):
    """`Cache8` of eight.c."""

    _fields_ = (
        *(("data", _POINTER), ("page", _COUNT), ("slot", _COUNT), ("head", _COUNT), ("dim", _COUNT)),
        *(("scales", _POINTER), ("scale", _NUMBER)),
    )


class _Decode8(ctypes.Structure):
    """`Decode8` of eight.c."""

    _fields_ = (
        *(("q", _POINTER), ("q_seq", _COUNT), ("q_head", _COUNT), ("k", _Cache8), ("v", _Cache8)),
        *(("tables", _POINTER), ("table_stride", _COUNT), ("lengths", _POINTER), ("scratch", _POINTER)),
        *(("out", _POINTER), ("scale", _NUMBER), ("window", _COUNT), ("seqs", _COUNT), ("heads", _COUNT)),
        *(("kv_heads", _COUNT), ("block", _COUNT), ("tasks", _COUNT), ("kind", _COUNT)),
    )


def takes(rows: Tensor, pages: Pages) -> bool:
    """Whether the kernels are there and take these rows [T,heads,D] of bf16 and pages of K and V in 8 bits."""
    if rows.dtype is not torch.bfloat16 or rows.device.type != "cpu" or pages.v is None or pages.k_rope is not None:
        return False
    if rows.stride(-1) != 1 or rows.stride(-2) != rows.shape[-1]:
        return False
    if pages.k.dtype != pages.v.dtype or library() is None:
        return False
    return all(map(_is_eight, (pages.k, pages.v), (pages.k_scale, pages.v_scale)))


def _is_eight(stored: Tensor, scale: Scale) -> bool:
    dim = stored.shape[-1]
    together = stored.stride()[2:] == (dim, 1)
    scales_lie = not isinstance(scale, Tensor) or scale.is_contiguous()
    return stored.dtype in KINDS and dim % ROW == 0 and dim <= LARGEST_DIM and together and scales_lie


def store(rows: Tensor, stored: Tensor, slots: Tensor, scale: Scale) -> None:
    """rows [T,HKV,D] to the slots [T] of pages [P,B,HKV,D]."""
    call = _Store8(
        *(rows.data_ptr(), rows.stride(0), slots.data_ptr(), stored.data_ptr(), stored.stride(0), stored.stride(1)),
        *(stored.shape[1], *_scale(scale), len(rows), *rows.shape[1:], KINDS[stored.dtype]),
    )
    _functions().store_eight(ctypes.byref(call))


def decode(q: Tensor, pages: Pages, rows: Rows, softmax: Softmax) -> Tensor:
    """`Kernels.decode` of one query a sequence, q [S,HQ,D], without softcap and sinks."""
    assert pages.v is not None
    seqs, heads, _ = q.shape
    block, kv_heads, v_dim = pages.v.shape[1:]
    out, window = q.new_empty(seqs, heads, v_dim), softmax.window
    longest = rows.block_tables.shape[1] * block
    tasks = max(1, -(-(min(window, longest) if window else longest) // TOKENS_AT_ONCE))
    scratch = torch.empty(seqs * tasks * heads * (v_dim + ROW), dtype=torch.float32)
    call = _Decode8(
        *(q.data_ptr(), q.stride(0), q.stride(1), _cache(pages.k, pages.k_scale), _cache(pages.v, pages.v_scale)),
        *(rows.block_tables.data_ptr(), rows.block_tables.stride(0), rows.seq_lens.data_ptr(), scratch.data_ptr()),
        *(out.data_ptr(), softmax.scale, window, seqs, heads, kv_heads, block, tasks, KINDS[pages.k.dtype]),
    )
    _functions().decode_eight(ctypes.byref(call))
    return out


def _cache(stored: Tensor, scale: Scale) -> _Cache8:
    return _Cache8(stored.data_ptr(), *stored.stride()[:3], stored.shape[-1], *_scale(scale))


def _scale(scale: Scale) -> tuple[int | None, float]:
    """Where the scales are, and the one for all where there are none."""
    return (scale.data_ptr(), 1.0) if isinstance(scale, Tensor) else (None, scale)


@cache
def _functions() -> ctypes.CDLL:
    found = library()
    assert found is not None, "`takes` was asked first"
    for function in (found.store_eight, found.decode_eight):
        function.argtypes, function.restype = (_POINTER,), None
    return found
