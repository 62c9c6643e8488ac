"""How elements are stored: the formats of a cache, and the dtypes of weights and of recurrent state, in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from kvtool.errors import KvtoolError

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
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFormat:
    """How one K or V vector of one head is stored: `element_bytes` an element, and `scale_bytes` once a vector."""

    name: str
    element_bytes: int
    scale_bytes: int = 0

    def vector_bytes(self, elements: int) -> int:
        """Bytes of one stored vector with its scale; a vector that does not exist (0 elements) has no scale either."""
        return elements * self.element_bytes + self.scale_bytes if elements else 0


# fp8 and int8 are scaled per tensor, which stores nothing per token; *_per_token_head keep an fp32 scale beside every
# vector, as vLLM's Triton backend does.
CACHE_FORMATS = {
    cache_format.name: cache_format
    for cache_format in (
        CacheFormat(name="fp32", element_bytes=4),
        CacheFormat(name="bf16", element_bytes=2),
        CacheFormat(name="fp16", element_bytes=2),
        CacheFormat(name="fp8", element_bytes=1),
        CacheFormat(name="fp8_e5m2", element_bytes=1),
        CacheFormat(name="int8", element_bytes=1),
        CacheFormat(name="fp8_per_token_head", element_bytes=1, scale_bytes=4),
        CacheFormat(name="int8_per_token_head", element_bytes=1, scale_bytes=4),
    )
}


def canonical_dtype(name: str) -> str:
    """kvtool's name of a dtype: `bfloat16` -> `bf16`, `fp8_e4m3` -> `fp8`; unknown names come back as they are."""
    lowered = name.strip().lower().removeprefix("torch.")
    return _ALIASES.get(lowered, lowered)


def parse_cache_format(name: str, model_dtype: str | None = None) -> CacheFormat:
    """The format called `name`; `auto` is the model's own dtype, bf16 where none is known. Raises KvtoolError."""
    wanted = (model_dtype or "bf16") if name == AUTO else name
    cache_format = CACHE_FORMATS.get(canonical_dtype(wanted))
    if cache_format is None:
        raise KvtoolError(f"unknown KV cache dtype {wanted!r}: use one of {', '.join([AUTO, *CACHE_FORMATS])}")
    return cache_format


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
