"""The kernels of `c/` as functions of tensors, for bf16 on CPUs: where this machine can build them (`system.compiled`).

Without a compiler there are none, and torch's own operations do the work.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from kvtool.system.compiled import Compiled, load_library

SOURCES = Path(__file__).with_name("c")
FLAGS = ("-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")
ROW = 32  # every row is a multiple of so many elements
TOKENS_AT_ONCE = 128  # as in pages.h
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_new": 2, "gelu_pytorch_tanh": 2}
HUGE_PAGE_BYTES = 2 << 20

_POINTER, _COUNT, _NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SIGNATURES = {
    "linear": (_POINTER, _COUNT, *(_POINTER,) * 3, *(_COUNT,) * 3, _POINTER),
    "gated_linear": (_POINTER, _COUNT, *(_POINTER,) * 4, _COUNT, _POINTER, *(_COUNT,) * 3, _POINTER),
    "gate": (_POINTER, _POINTER, _COUNT, _COUNT),
    "rms_norm": (_POINTER, _COUNT, _POINTER, _NUMBER, _POINTER, _COUNT, _COUNT),
    "add_rms_norm": (*(_POINTER, _COUNT) * 2, _POINTER, _NUMBER, _POINTER, _POINTER, _COUNT, _COUNT),
    "rotate": (_POINTER, _COUNT, _COUNT, *(_POINTER,) * 3, *(_COUNT,) * 3),
    "store_rows": (_POINTER, _COUNT, _POINTER, _POINTER, *(_COUNT,) * 5),
    "paged_decode": (_POINTER,),
    "paged_prefill": (_POINTER,),
    "read_all": (_POINTER, _COUNT),
}


def _cache(name: str) -> tuple[tuple[str, type], ...]:
    """The fields of a `Cache`."""
    strides = ((f"{name}_{part}", _COUNT) for part in ("page", "slot", "head", "dim"))
    return ((name, _POINTER), *strides)


class _Decode(ctypes.Structure):
    """`Decode` of decode.c, its two `Cache`s field by field."""

    _fields_ = (
        *(("q", _POINTER), ("q_seq", _COUNT), ("q_head", _COUNT), *_cache("k"), *_cache("v")),
        *(("tables", _POINTER), ("table_stride", _COUNT), ("lengths", _POINTER), ("scratch", _POINTER)),
        *(("out", _POINTER), ("scale", _NUMBER), ("window", _COUNT), ("seqs", _COUNT), ("heads", _COUNT)),
        *(("kv_heads", _COUNT), ("block", _COUNT), ("tasks", _COUNT)),
    )


class _Prefill(ctypes.Structure):
    """`Prefill` of prefill.c."""

    _fields_ = (
        *(("q", _POINTER), ("q_row", _COUNT), ("q_head", _COUNT), *_cache("k"), *_cache("v")),
        *(("tables", _POINTER), ("table_stride", _COUNT), ("lengths", _POINTER), ("starts", _POINTER)),
        *(("scratch", _POINTER), ("out", _POINTER), ("scale", _NUMBER), ("window", _COUNT), ("seqs", _COUNT)),
        *(("heads", _COUNT), ("kv_heads", _COUNT), ("block", _COUNT), ("longest", _COUNT)),
    )


class Native:
    """The loaded library. Tensors are bf16 on the CPU, and their last dimension is contiguous."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name, signature in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = signature, None
        library.prefill_scratch_bytes.argtypes, library.prefill_scratch_bytes.restype = (_POINTER,), _COUNT
        library.read_all.restype = ctypes.c_uint32
        self.prefill_pays = bool(library.prefill_pays())

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [T, in] W^T + bias -> [T, out], for a weight out of `packed`."""
        blocks, pairs = weight.shape[:2]
        out, woven = x.new_empty(len(x), blocks * ROW), x.new_empty(x.shape)
        self._library.linear(
            x.data_ptr(),
            x.stride(0),
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            len(x),
            2 * pairs,
            blocks * ROW,
            woven.data_ptr(),
        )
        return out

    def gated_linear(
        self, x: Tensor, gate: Tensor, up: Tensor, biases: tuple[Tensor | None, Tensor | None], activation: str
    ) -> Tensor:
        """activation(x Wg^T + bg) * (x Wu^T + bu) -> [T, out], for weights out of `packed`."""
        blocks, pairs = gate.shape[:2]
        out, woven = x.new_empty(len(x), blocks * ROW), x.new_empty(x.shape)
        self._library.gated_linear(
            x.data_ptr(),
            x.stride(0),
            gate.data_ptr(),
            up.data_ptr(),
            *(None if bias is None else bias.data_ptr() for bias in biases),
            ACTIVATIONS[activation],
            out.data_ptr(),
            len(x),
            2 * pairs,
            blocks * ROW,
            woven.data_ptr(),
        )
        return out

    def gate_(self, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        """activation(gate) * up, written over `gate`; both are contiguous."""
        self._library.gate(gate.data_ptr(), up.data_ptr(), ACTIVATIONS[activation], gate.numel())
        return gate

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [T, n] / rms(x) * weight [n]."""
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        self._library.rms_norm(x.data_ptr(), x.stride(0), weight.data_ptr(), eps, out.data_ptr(), len(x), x.shape[1])
        return out

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """x and residual [T, n] -> (`rms_norm` of their sum, their sum)."""
        added, normed = x.new_empty(x.shape), x.new_empty(x.shape)
        self._library.add_rms_norm(
            *(x.data_ptr(), x.stride(0), residual.data_ptr(), residual.stride(0), weight.data_ptr(), eps),
            *(added.data_ptr(), normed.data_ptr(), *x.shape),
        )
        return normed, added

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [T, heads, dim] cos + roll(x, dim / 2) sin; cos and sin [T, 1, dim] are contiguous."""
        out = x.new_empty(x.shape)
        self._library.rotate(
            x.data_ptr(), x.stride(0), x.stride(1), cos.data_ptr(), sin.data_ptr(), out.data_ptr(), *x.shape
        )
        return out

    def store_rows(self, rows: Tensor, cache: Tensor, slots: Tensor) -> None:
        """rows [T, ...] to the slots [T] of cache [P, B, ...]; the dimensions after T and B are contiguous."""
        self._library.store_rows(
            rows.data_ptr(),
            rows.stride(0),
            slots.data_ptr(),
            cache.data_ptr(),
            cache.stride(0),
            cache.stride(1),
            cache.shape[1],
            len(rows),
            rows[0].numel() if len(rows) else 0,
        )

    def paged_decode(
        self, q: Tensor, k: Tensor, v: Tensor, block_tables: Tensor, seq_lens: Tensor, scale: float, window: int
    ) -> Tensor:
        """`Kernels.decode` of q [S,HQ,D] over k [P,B,HKV,D] and v [P,B,HKV,DV]."""
        seqs, heads, k_dim = q.shape
        block, kv_heads, v_dim = v.shape[1:]
        out = q.new_empty(seqs, heads, v_dim)
        longest = block_tables.shape[1] * block
        tasks = max(1, -(-(min(window, longest) if window else longest) // TOKENS_AT_ONCE))
        scratch = torch.empty(seqs * tasks * heads * (v_dim + ROW), dtype=torch.float32)
        call = _Decode(
            *(q.data_ptr(), q.stride(0), q.stride(1)),
            *(k.data_ptr(), *k.stride()[:3], k_dim),
            *(v.data_ptr(), *v.stride()[:3], v_dim),
            *(block_tables.data_ptr(), block_tables.stride(0), seq_lens.data_ptr(), scratch.data_ptr()),
            *(out.data_ptr(), scale, window, seqs, heads, kv_heads, block, tasks),
        )
        self._library.paged_decode(ctypes.byref(call))
        return out

    def paged_prefill(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        block_tables: Tensor,
        seq_lens: Tensor,
        query_starts: Tensor,
        scale: float,
        window: int,
        longest: int,
    ) -> Tensor:
        """`Kernels.prefill` of q [T,HQ,D]; no sequence has more than `longest` queries. The indices are int32."""
        block, kv_heads, v_dim = v.shape[1:]
        out = q.new_empty(*q.shape[:2], v_dim)
        call = _Prefill(
            *(q.data_ptr(), q.stride(0), q.stride(1)),
            *(k.data_ptr(), *k.stride()[:3], q.shape[2]),
            *(v.data_ptr(), *v.stride()[:3], v_dim),
            *(block_tables.data_ptr(), block_tables.stride(0), seq_lens.data_ptr(), query_starts.data_ptr()),
            *(None, out.data_ptr(), scale, window, len(seq_lens), q.shape[1], kv_heads, block, longest),
        )
        thread_bytes = self._library.prefill_scratch_bytes(ctypes.byref(call))
        scratch = torch.empty(torch.get_num_threads() * thread_bytes, dtype=torch.uint8)
        call.scratch = scratch.data_ptr()
        self._library.paged_prefill(ctypes.byref(call))
        return out

    def read_all(self, tensor: Tensor) -> int:
        """Reads a contiguous tensor once with all threads; the sum of its 32-bit words, modulo 2^32, is by the way."""
        return int(self._library.read_all(tensor.data_ptr(), tensor.nbytes))


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
    madvise.argtypes = (_POINTER, ctypes.c_size_t, ctypes.c_int)
    madvise(start, stop - start, mmap.MADV_HUGEPAGE)  # advice: a refusal costs speed alone
    return tensor


def serves(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors: bf16 on the CPU, rows of a multiple of 32."""
    return all(
        tensor.dtype is torch.bfloat16
        and tensor.device.type == "cpu"
        and tensor.shape[-1] % ROW == 0
        and tensor.stride(-1) == 1
        for tensor in tensors
    )


@cache
def native() -> Native | None:
    """The kernels, built now if this machine has not built them before; None where they cannot be."""
    library = _compiled().handle
    return None if library is None else Native(library)


def why_not() -> str | None:
    """In words why there are no kernels; None where there are."""
    return None if native() else _compiled().reason


def _compiled() -> Compiled:
    wide = ("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()
    return load_library(SOURCES, (*FLAGS, *wide))
