"""The kernels of `c/` as functions of tensors, for bf16 on CPUs: where this machine can build them (`system.compiled`).

Without a compiler there are none, and torch's own operations do the work.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from kvtool.kernels.cpu.memory import ROW
from kvtool.kernels.cpu.quantised import Codes
from kvtool.kernels.cpu.recording import Recorder
from kvtool.kernels.cpu.structs import OPERATIONS, Call, Prefill
from kvtool.kernels.interface import Replay
from kvtool.system.compiled import Compiled, load_library
from kvtool.units import ceil_div

SOURCES = Path(__file__).with_name("c")
FLAGS = ("-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")
TOKENS_AT_ONCE = 128  # as in pages.h
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_new": 2, "gelu_pytorch_tanh": 2}
MOST_AS_THEY_CAME = {True: 8, False: 4}  # rows, with AMX and without: as in products.c
MANY = 32768  # elements from which a second thread pays
ROWS_OF_A_TILE = 16


class Native:
    """The loaded library. Tensors are bf16 on the CPU, and their last dimension is contiguous."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.run.argtypes, library.run.restype = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64), None
        library.prefill_scratch_bytes.argtypes = (ctypes.c_void_p,)
        for size in (library.prefill_scratch_bytes, library.request_tiles, library.digits_bytes):
            size.restype = ctypes.c_int64
        library.read_all.argtypes, library.read_all.restype = (ctypes.c_void_p, ctypes.c_int64), ctypes.c_uint32
        self._address = {name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in OPERATIONS}
        self._recorder: Recorder | None = None
        self.prefill_pays = bool(library.prefill_pays())
        self.quantised_pays = bool(library.quantised_pays())
        self.has_tiles = bool(library.request_tiles())

    def _call(self, name: str, elements: int, *fields: float | None) -> None:
        """The operation of so many elements with these fields of its struct."""
        arguments = OPERATIONS[name](*fields)
        call = Call(self._address[name], ctypes.addressof(arguments))
        self._library.run(ctypes.byref(call), 1, elements >= MANY)
        if self._recorder is not None:
            self._recorder.add(call, arguments)

    def _empty(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, dtype=dtype) if self._recorder is None else self._recorder.arena.empty(shape, dtype)

    def record(self, step: Callable[[], Tensor]) -> tuple[Tensor, Replay | None]:
        """`StepKernels.record`: all that `step` does is to call these kernels, or there is nothing to replay."""
        with Recorder() as recorder:
            self._recorder = recorder
            try:
                found = step()
            finally:
                self._recorder = None
        return found, recorder.replay(self._library.run)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [T, in] W^T + bias -> [T, out], for a weight out of `packed`."""
        columns = len(weight) * ROW
        out, woven = self._empty(len(x), columns), self._woven(x)
        fields = *self._inputs(x, woven), weight.data_ptr(), _address(bias), out.data_ptr(), columns
        self._call("linear", weight.numel(), *fields)
        return out

    def gated_linear(
        self, x: Tensor, gate: Tensor, up: Tensor, biases: tuple[Tensor | None, Tensor | None], activation: str
    ) -> Tensor:
        """activation(x Wg^T + bg) * (x Wu^T + bu) -> [T, out], for weights out of `packed`."""
        columns = len(gate) * ROW
        out, woven = self._empty(len(x), columns), self._woven(x)
        weights = gate.data_ptr(), up.data_ptr(), *map(_address, biases)
        fields = *self._inputs(x, woven), *weights, out.data_ptr(), columns, ACTIVATIONS[activation]
        self._call("gated_linear", gate.numel(), *fields)
        return out

    def _woven(self, x: Tensor) -> Tensor | None:
        """Room for the rows in the order in which a product of several reads them."""
        rows, width = x.shape
        if rows <= MOST_AS_THEY_CAME[self.has_tiles]:
            return None
        return self._empty(ceil_div(rows, ROWS_OF_A_TILE) * ROWS_OF_A_TILE, width)

    def _inputs(self, x: Tensor, woven: Tensor | None) -> tuple[int | None, ...]:
        """The fields of `Inputs`."""
        return x.data_ptr(), x.stride(0), _address(woven), *x.shape, self.has_tiles

    def quantised_linear(self, x: Tensor, weight: Codes, bias: Tensor | None) -> Tensor:
        """`linear` for a weight out of `packed_codes`."""
        out, digits = self._empty(len(x), weight.outputs), self._digits(x)
        fields = x.data_ptr(), x.stride(0), digits.data_ptr(), *x.shape, *weight.fields, _address(bias)
        self._call("quantised_linear", weight.blocks.numel(), *fields, out.data_ptr(), weight.outputs)
        return out

    def quantised_gated_linear(
        self, x: Tensor, gate: Codes, up: Codes, biases: tuple[Tensor | None, Tensor | None], activation: str
    ) -> Tensor:
        """`gated_linear` for weights out of `packed_codes`."""
        out, digits = self._empty(len(x), gate.outputs), self._digits(x)
        given = x.data_ptr(), x.stride(0), digits.data_ptr(), *x.shape, *gate.fields, *up.fields
        fields = *given, *map(_address, biases), out.data_ptr(), gate.outputs, ACTIVATIONS[activation]
        self._call("quantised_gated_linear", gate.blocks.numel(), *fields)
        return out

    def _digits(self, x: Tensor) -> Tensor:
        """Room for the rows as integers."""
        return self._empty(x.numel() // ROW * self._library.digits_bytes(), dtype=torch.uint8)

    def gate_(self, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        """activation(gate) * up, written over `gate`; both are contiguous."""
        self._call("gate", gate.numel(), gate.data_ptr(), up.data_ptr(), ACTIVATIONS[activation], gate.numel())
        return gate

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [T, n] / rms(x) * weight [n], or of each head of x [T, heads, n] by weight [n] or [heads, n]."""
        out = self._empty(*x.shape)
        heads = x.shape[1] if x.dim() == 3 else 1
        strides = x.stride(0), x.stride(1) if x.dim() == 3 else 0
        of_head = weight.stride(0) if weight.dim() == 2 else 0
        fields = x.data_ptr(), *strides, weight.data_ptr(), of_head, eps, out.data_ptr(), len(x), heads, x.shape[-1]
        self._call("rms_norm", x.numel(), *fields)
        return out

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """x and residual [T, n] -> (`rms_norm` of their sum, their sum)."""
        added, normed = self._empty(*x.shape), self._empty(*x.shape)
        given = x.data_ptr(), x.stride(0), residual.data_ptr(), residual.stride(0), weight.data_ptr(), eps
        self._call("add_rms_norm", x.numel(), *given, added.data_ptr(), normed.data_ptr(), *x.shape)
        return normed, added

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [T, heads, dim] cos + roll(x, dim / 2) sin; cos and sin [T, 1, dim] are contiguous."""
        out = self._empty(*x.shape)
        given = x.data_ptr(), x.stride(0), x.stride(1), cos.data_ptr(), sin.data_ptr()
        self._call("rotate", x.numel(), *given, out.data_ptr(), *x.shape)
        return out

    def store_rows(self, rows: Tensor, cache: Tensor, slots: Tensor) -> None:
        """rows [T, ...] to the slots [T] of cache [P, B, ...]; the dimensions after T and B are contiguous."""
        width = rows[0].numel() if len(rows) else 0
        to = cache.data_ptr(), cache.stride(0), cache.stride(1), cache.shape[1]
        given = rows.data_ptr(), rows.stride(0), slots.data_ptr()
        self._call("store_rows", rows.numel(), *given, *to, len(rows), width)

    def likeliest(self, logits: Tensor) -> Tensor:
        """The place of the largest of each row of logits [T, n], of equals the first: [T] int64."""
        out = self._empty(len(logits), dtype=torch.int64)
        fields = logits.data_ptr(), logits.stride(0), out.data_ptr(), *logits.shape
        self._call("likeliest", logits.numel() // ROW, *fields)  # an element is read, and little else
        return out

    def paged_decode(
        self, q: Tensor, k: Tensor, v: Tensor, block_tables: Tensor, seq_lens: Tensor, scale: float, window: int
    ) -> Tensor:
        """`Kernels.decode` of q [S,HQ,D] over k [P,B,HKV,D] and v [P,B,HKV,DV]."""
        seqs, heads, k_dim = q.shape
        block, kv_heads, v_dim = v.shape[1:]
        out = self._empty(seqs, heads, v_dim)
        longest = block_tables.shape[1] * block
        tasks = max(1, ceil_div(min(window, longest) if window else longest, TOKENS_AT_ONCE))
        scratch = self._empty(seqs * tasks * heads * (v_dim + ROW), dtype=torch.float32)
        fields = (
            *(q.data_ptr(), q.stride(0), q.stride(1)),
            *(k.data_ptr(), *k.stride()[:3], k_dim),
            *(v.data_ptr(), *v.stride()[:3], v_dim),
            *(block_tables.data_ptr(), block_tables.stride(0), seq_lens.data_ptr(), scratch.data_ptr()),
            *(out.data_ptr(), scale, window, seqs, heads, kv_heads, block, tasks),
        )
        self._call("paged_decode", MANY, *fields)
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
        out = self._empty(*q.shape[:2], v_dim)
        before = (
            *(q.data_ptr(), q.stride(0), q.stride(1)),
            *(k.data_ptr(), *k.stride()[:3], q.shape[2]),
            *(v.data_ptr(), *v.stride()[:3], v_dim),
            *(block_tables.data_ptr(), block_tables.stride(0), seq_lens.data_ptr(), query_starts.data_ptr()),
        )
        after = out.data_ptr(), scale, window, len(seq_lens), q.shape[1], kv_heads, block, longest
        shape = Prefill(*before, None, *after)
        thread_bytes = self._library.prefill_scratch_bytes(ctypes.byref(shape))
        scratch = self._empty(torch.get_num_threads() * thread_bytes, dtype=torch.uint8)
        self._call("paged_prefill", MANY, *before, scratch.data_ptr(), *after)
        return out

    def read_all(self, tensor: Tensor) -> int:
        """Reads a contiguous tensor once with all threads; the sum of its 32-bit words, modulo 2^32, is by the way."""
        return int(self._library.read_all(tensor.data_ptr(), tensor.nbytes))


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


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
    found = library()
    return None if found is None else Native(found)


@cache
def library() -> ctypes.CDLL | None:
    """All that `c/` was built to, for kernels with a module of their own; None where it cannot be."""
    return _compiled().handle


def why_not() -> str | None:
    """In words why there are no kernels; None where there are."""
    return None if native() else _compiled().reason


def _compiled() -> Compiled:
    wide = ("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()
    return load_library(SOURCES, (*FLAGS, *wide))
