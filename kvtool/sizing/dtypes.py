"""How elements are stored: the dtypes of weights and of recurrent state. The formats of a cache are in `formats`."""

from __future__ import annotations

from kvtool.system.errors import KvtoolError

AUTO = "auto"
FLOAT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
WEIGHT_BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "int4": 4}
# What checkpoints and frameworks call the same things.
_ALIASES = {
    "float32": "fp32",
    "float": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "fp8_e4m3": "fp8",
    "fp8_inc": "fp8",
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "fp8_e5m2",
    "nvfp4_4over6": "nvfp4",
}


def canonical_dtype(name: str) -> str:
    """kvtool's name of a dtype: `bfloat16` -> `bf16`, `fp8_e4m3` -> `fp8`; unknown names come back as they are."""
    lowered = name.strip().lower().removeprefix("torch.")
    return _ALIASES.get(lowered, lowered)


def parse_float_dtype(name: str, what: str) -> str:
    """`fp32`, `bf16` or `fp16` from any of their names. Raises KvtoolError; `what` names the option in its message."""
    dtype = canonical_dtype(name)
    if dtype not in FLOAT_BYTES:
        raise KvtoolError(f"unknown {what} {name!r}: use one of {', '.join([AUTO, *FLOAT_BYTES])}")
    return dtype


def parse_weight_dtype(name: str) -> str:
    """A weight dtype from any of its names. Raises KvtoolError."""
    dtype = canonical_dtype(name)
    if dtype not in WEIGHT_BITS:
        raise KvtoolError(f"unknown weight dtype {name!r}: use one of {', '.join([AUTO, *WEIGHT_BITS])}")
    return dtype
