"""The structs of `c/` as ctypes knows them, field by field."""

from __future__ import annotations

import ctypes
from typing import Any

_KINDS = {"*": ctypes.c_void_p, "%": ctypes.c_float}


def _fields(names: str) -> tuple[tuple[str, type], ...]:
    """`*x` is a pointer, `%x` a float, `x` an int64_t."""
    return tuple((name.lstrip("*%"), _KINDS.get(name[0], ctypes.c_int64)) for name in names.split())


def _cache(name: str) -> str:
    """A `Cache` of pages.h."""
    return f"*{name} {name}_page {name}_slot {name}_head {name}_dim"


_INPUTS = "*x x_stride *woven rows inputs tiles"
_ROWS = "*x x_stride *digits rows inputs"
_TABLES = "*tables table_stride *lengths"


class Call(ctypes.Structure):
    """An operation and its struct."""

    _fields_ = _fields("*operation *arguments")


class Linear(ctypes.Structure):
    _fields_ = _fields(f"{_INPUTS} *w *bias *y out")


class GatedLinear(ctypes.Structure):
    _fields_ = _fields(f"{_INPUTS} *gate *up *gate_bias *up_bias *y out activation")


class QuantisedLinear(ctypes.Structure):
    _fields_ = _fields(f"{_ROWS} *w bits numbers *row_scales *bias *y out")


class QuantisedGatedLinear(ctypes.Structure):
    _fields_ = _fields(
        f"{_ROWS} *gate gate_bits gate_numbers *gate_row_scales *up up_bits up_numbers *up_row_scales "
        "*gate_bias *up_bias *y out activation"
    )


class Gate(ctypes.Structure):
    _fields_ = _fields("*gate *up activation count")


class RmsNorm(ctypes.Structure):
    _fields_ = _fields("*x x_row x_head *weight weight_head %eps *y rows heads n")


class AddRmsNorm(ctypes.Structure):
    _fields_ = _fields("*x x_row *residual residual_row *weight %eps *added *y rows n")


class Rotate(ctypes.Structure):
    _fields_ = _fields("*x x_row x_head *cos *sin *y rows heads dim")


class StoreRows(ctypes.Structure):
    _fields_ = _fields("*rows row *slots *cache page slot block tokens width")


class Likeliest(ctypes.Structure):
    _fields_ = _fields("*x x_row *y rows n")


class Decode(ctypes.Structure):
    _fields_ = _fields(
        f"*q q_seq q_head {_cache('k')} {_cache('v')} {_TABLES} *scratch *out %scale window seqs heads kv_heads block "
        "tasks"
    )


class Prefill(ctypes.Structure):
    _fields_ = _fields(
        f"*q q_row q_head {_cache('k')} {_cache('v')} {_TABLES} *starts *scratch *out %scale window seqs heads "
        "kv_heads block longest"
    )


OPERATIONS: dict[str, type[Any]] = {
    "linear": Linear,
    "gated_linear": GatedLinear,
    "quantised_linear": QuantisedLinear,
    "quantised_gated_linear": QuantisedGatedLinear,
    "gate": Gate,
    "rms_norm": RmsNorm,
    "add_rms_norm": AddRmsNorm,
    "rotate": Rotate,
    "store_rows": StoreRows,
    "likeliest": Likeliest,
    "paged_decode": Decode,
    "paged_prefill": Prefill,
}
