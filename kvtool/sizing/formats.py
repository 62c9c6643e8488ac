"""The formats of a KV cache, as data: bits of an element, bytes of its scales, and the layouts of rows of MLA.

Every format is one entry of `CACHE_FORMATS`; nothing else knows a format by name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from kvtool.catalog.model import IndexDtype
from kvtool.sizing.dtypes import AUTO, canonical_dtype
from kvtool.system.errors import KvtoolError
from kvtool.units import ceil_div, parse_length, round_up

Scheme = Literal["fp32", "bf16", "fp16", "e4m3", "e5m2", "symmetric", "signed", "minimum"]
"""How values become bits: rounded to a float (times a scale where there is one), or to an integer, whose scale makes
the largest magnitude the largest code (symmetric), the value of largest magnitude the lowest code (signed, ggml's), or
the span from the least value the span of codes (minimum)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """How one vector is stored: `bits` an element, and `scale_bytes` (scale, zero point, norm) once for every `group`
    elements, or once for the vector where there is no group. Its length must be a multiple of `multiple`.

    `per_channel`: a scale serves one element of `group` tokens, not `group` elements of one token. `scheme` is None
    where only the bytes are known.
    """

    bits: int
    scale_bytes: int = 0
    group: int | None = None
    multiple: int = 1
    per_channel: bool = False
    scheme: Scheme | None = None

    def groups(self, elements: int) -> int:
        """Scales of a vector."""
        return ceil_div(elements, self.group or elements) if elements and self.scale_bytes else 0

    def stored_bytes(self, elements: int) -> int:
        """Bytes of a vector with its scales, or its share of them; one that does not exist (0 elements) has none."""
        if self.per_channel:
            assert self.group is not None
            return ceil_div(elements * (self.bits * self.group + 8 * self.scale_bytes), 8 * self.group)
        return ceil_div(elements * self.bits, 8) + self.groups(elements) * self.scale_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """How one row of MLA is stored: the latent one way, its rotary part another, both padded to `multiple` bytes."""

    latent: Vector
    rope: Vector
    multiple: int = 1

    def stored_bytes(self, latent: int, rope: int) -> int:
        return round_up(self.latent.stored_bytes(latent) + self.rope.stored_bytes(rope), self.multiple)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparse:
    """Attention to at most `tokens` of a sequence, in whole pages of `page_tokens`.

    - streaming (StreamingLLM, arXiv 2309.17453): the first page, which has the sinks, and the newest ones. Pages
      between them are let go, but for one, which holds the sinks turned to where the cache has them.
    - quest (arXiv 2406.10774): the newest page, and those whose keys may score highest by their bounds, the least and
      largest of each channel, kept beside the page. All pages are kept. The first `whole_layers` read everything.
    """

    way: Literal["streaming", "quest"]
    tokens: int
    page_tokens: int = 16
    step_tokens: int = 256  # of a prompt, between which pages are let go

    @property
    def pages(self) -> int:
        """Pages that attention reads."""
        return self.tokens // self.page_tokens

    @property
    def whole_layers(self) -> int:
        """First layers that are not sparse."""
        return 2 if self.way == "quest" else 0

    def paged(self, page_tokens: int) -> Sparse:
        """The same in pages of that size. Raises KvtoolError where it has none that fit."""
        if self.way == "streaming" and page_tokens < LEAST_SINKS:
            raise KvtoolError(f"a streaming cache needs pages of {LEAST_SINKS} tokens at least, not {page_tokens}")
        if self.tokens % page_tokens or self.tokens < 2 * page_tokens:
            nearest = max(2, self.tokens // page_tokens) * page_tokens
            raise KvtoolError(
                f"{self.way}:{self.tokens} reads whole pages of {page_tokens}, two at least: as {nearest}"
            )
        return replace(self, page_tokens=page_tokens, step_tokens=round_up(self.step_tokens, page_tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFormat:
    """One --kv-cache-dtype. None where a format has no such vectors: `key` and `value` of a head, a row of `mla`, of
    MLA that an indexer reads (`sparse_mla`), and of `compressed` attention (DeepSeek-V4).

    `slot_multiple` pads a head's K and V together; at least the last `residual_tokens` of a sequence, and the first and
    last `whole_layers` of a model without recurrent layers, stay in 16 bits. `rotated`: heads are turned by a Hadamard
    matrix before they are stored. `calibrated`: each layer has a scale for K and one for V, measured beforehand.
    `sparse`: attention reads a part of it.
    """

    name: str
    key: Vector | None = None
    value: Vector | None = None
    mla: Row | None = None
    sparse_mla: Row | None = None
    compressed: Row | None = None
    slot_multiple: int = 1
    residual_tokens: int = 0
    whole_layers: int = 0
    rotated: bool = False
    calibrated: bool = False
    sparse: Sparse | None = None

    @property
    def storable(self) -> bool:
        """Whether it is known how K and V become bits, and not only how many."""
        vectors = (self.key, self.value)
        return self.slot_multiple == 1 and all(v is not None and v.scheme is not None for v in vectors)

    @property
    def base_name(self) -> str:
        """Its name without how it is prepared."""
        return self.name.partition("+")[0]

    @property
    def method(self) -> str | None:
        """How it is prepared, beside rounding: `hadamard`, `calibrated`."""
        return self.name.partition("+")[2].replace("+", ", ") or None

    @property
    def whole(self) -> CacheFormat:
        """The same, read whole."""
        return replace(self, name=self.base_name, sparse=None) if self.sparse else self

    def paged(self, page_tokens: int) -> CacheFormat:
        """The same in pages of that size, which matters to a sparse one. Raises KvtoolError."""
        return replace(self, sparse=self.sparse.paged(page_tokens)) if self.sparse else self

    def quantised_tokens(self, tokens: int) -> int:
        """Of so many tokens, those that have left the residual: in whole groups where a scale serves several tokens."""
        group = self.key.group if self.key is not None and self.key.per_channel else None
        return max(0, tokens - self.residual_tokens) // (group or 1) * (group or 1)

    def head_bytes(self, key: int, value: int) -> int:
        """Bytes of one head's K and V of one token. Raises KvtoolError where the format does not hold such heads."""
        if self.key is None or self.value is None:
            raise KvtoolError(f"a {self.name} cache holds rows of MLA: this model has K and V heads")
        for vector, elements in ((self.key, key), (self.value, value)):
            self._check(vector, elements, "head size")
        return round_up(self.key.stored_bytes(key) + self.value.stored_bytes(value), self.slot_multiple)

    def row_bytes(self, row: Row | None, latent: int, rope: int) -> int:
        """Bytes of one of its rows. Raises KvtoolError where the format has no such row."""
        if row is None:
            raise KvtoolError(f"a {self.name} cache has no rows for the MLA of this model")
        self._check(row.latent, latent, "latent")
        self._check(row.rope, rope, "rotary part")
        return row.stored_bytes(latent, rope)

    def _check(self, vector: Vector, elements: int, what: str) -> None:
        if elements % vector.multiple:
            raise KvtoolError(
                f"a {self.name} cache stores blocks of {vector.multiple} elements: a {what} of {elements} does not fill"
            )


_FP32, _BYTE = Vector(bits=32, scheme="fp32"), Vector(bits=8)
_BF16, _FP16 = Vector(bits=16, scheme="bf16"), Vector(bits=16, scheme="fp16")
_E4M3, _E5M2 = Vector(bits=8, scheme="e4m3"), Vector(bits=8, scheme="e5m2")
WHOLE = _BF16  # what is left unquantised beside quantised vectors
_NVFP4 = Vector(bits=4, scale_bytes=1, group=16, multiple=16)  # e2m1, an e4m3 scale for 16
_DS_MLA = Row(latent=Vector(bits=8, scale_bytes=4, group=128), rope=_BF16)  # fp8, an fp32 scale for 128; 656 B
_DS_MLA_V4 = Row(latent=Vector(bits=8, scale_bytes=1, group=64), rope=_BF16, multiple=8)  # ue8m0 scales; 584 B
_NVFP4_DS_MLA = Row(latent=_NVFP4, rope=_BYTE)  # 352 B

INDEX_KEYS: dict[IndexDtype, Vector] = {
    "bf16": _BF16,
    "fp8": Vector(bits=8, scale_bytes=4, group=128),
    "fp4": Vector(bits=4, scale_bytes=1, group=32),
}


def _uniform(name: str, vector: Vector, *, residual_tokens: int = 0) -> CacheFormat:
    """Every vector the same way, those of MLA too."""
    row = Row(latent=vector, rope=vector)
    return CacheFormat(
        name=name,
        key=vector,
        value=vector,
        mla=row,
        sparse_mla=row,
        compressed=row,
        residual_tokens=residual_tokens,
    )


def _turboquant(name: str, key: Vector, value_bits: int) -> CacheFormat:
    """vLLM's: an fp16 norm beside a key, fp16 scale and zero point beside a value; two layers at each end are whole."""
    value = Vector(bits=value_bits, scale_bytes=4)
    return CacheFormat(name=name, key=key, value=value, slot_multiple=2, whole_layers=2)


def _blocks(name: str, bits: int, block_scale_bytes: int, scheme: Scheme | None) -> CacheFormat:
    """llama.cpp's: blocks of 32 elements with an fp16 scale, and an fp16 minimum in the _1 kinds."""
    return _uniform(name, Vector(bits=bits, scale_bytes=block_scale_bytes, group=32, multiple=32, scheme=scheme))


def _kivi(name: str, bits: int) -> CacheFormat:
    """Groups of 64 with an fp16 scale and minimum: K by channel over tokens, V by token. The newest 128 are whole."""
    value = Vector(bits=bits, scale_bytes=4, group=64, scheme="minimum")
    return replace(_uniform(name, value, residual_tokens=128), key=replace(value, per_channel=True))


_PER_TENSOR = (_uniform("fp8_e5m2", _E5M2), _uniform("fp8_plain", _E4M3))
CACHE_FORMATS = {
    cache_format.name: cache_format
    for cache_format in (
        _uniform("fp32", _FP32),
        _uniform("bf16", _BF16),
        _uniform("fp16", _FP16),
        # A scale per tensor takes no bytes per token. vLLM turns fp8 of sparse MLA into fp8_ds_mla; fp8_plain does not.
        CacheFormat(
            name="fp8",
            key=_E4M3,
            value=_E4M3,
            mla=Row(latent=_BYTE, rope=_BYTE),
            sparse_mla=_DS_MLA,
            compressed=_DS_MLA_V4,
        ),
        *_PER_TENSOR,
        replace(_uniform("int8", Vector(bits=8, scheme="symmetric")), calibrated=True),
        # An fp32 scale beside every vector, as vLLM's Triton backend keeps it.
        _uniform("fp8_per_token_head", Vector(bits=8, scale_bytes=4, scheme="e4m3")),
        _uniform("int8_per_token_head", Vector(bits=8, scale_bytes=4, scheme="symmetric")),
        _uniform("int4_per_token_head", Vector(bits=4, scale_bytes=4, multiple=2, scheme="symmetric")),
        _uniform("mxfp8", Vector(bits=8, scale_bytes=1, group=32, multiple=32)),
        _uniform("nvfp4", _NVFP4),
        CacheFormat(name="fp8_ds_mla", mla=_DS_MLA, sparse_mla=_DS_MLA, compressed=_DS_MLA_V4),
        CacheFormat(name="nvfp4_ds_mla", mla=_NVFP4_DS_MLA, sparse_mla=_NVFP4_DS_MLA),
        _turboquant("turboquant_k8v4", _BYTE, 4),
        _turboquant("turboquant_4bit_nc", Vector(bits=4, scale_bytes=2), 4),
        _turboquant("turboquant_k3v4_nc", Vector(bits=3, scale_bytes=2), 4),
        _turboquant("turboquant_3bit_nc", Vector(bits=3, scale_bytes=2), 3),
        _uniform("ultraquant_4bit", Vector(bits=4, scale_bytes=1, group=32, multiple=32)),
        _uniform("int4", Vector(bits=4, scale_bytes=4, group=64, scheme="minimum")),
        _kivi("kivi_int4", 4),
        _kivi("kivi_int2", 2),
        _blocks("q8_0", 8, 2, "symmetric"),
        _blocks("q5_1", 5, 4, "minimum"),
        _blocks("q5_0", 5, 2, "signed"),
        _blocks("q4_1", 4, 4, "minimum"),
        _blocks("q4_0", 4, 2, "signed"),
        _blocks("iq4_nl", 4, 2, None),
    )
}


HADAMARD, CALIBRATED = "hadamard", "calibrated"
SPARSE: tuple[Literal["streaming"], Literal["quest"]] = ("streaming", "quest")
LEAST_SINKS = 4  # the paper's
SPARSE_OF = ("fp32", "bf16", "fp16")


def parse_cache_format(name: str, model_dtype: str | None = None) -> CacheFormat:
    """The format called `name`; `auto` is the model's own dtype, bf16 where none is known. `KEY/VALUE` stores K and V
    in different formats; `+hadamard` rotates heads, `+calibrated` measures scales first, `+streaming:1k` and
    `+quest:1k` read so many tokens of a sequence. Raises KvtoolError.
    """
    plain, *ways = name.split("+")
    key, _, value = plain.partition("/")
    found = _named(key, model_dtype)
    if value:
        found = _apart(found, _named(value, model_dtype))
    for way in ways:
        found = _prepared(found, way)
    return found


def _named(name: str, model_dtype: str | None) -> CacheFormat:
    wanted = (model_dtype or "bf16") if name == AUTO else name
    cache_format = CACHE_FORMATS.get(canonical_dtype(wanted))
    if cache_format is None:
        raise KvtoolError(f"unknown KV cache dtype {wanted[:40]!r}: use one of {', '.join([AUTO, *CACHE_FORMATS])}")
    return cache_format


def _apart(key: CacheFormat, value: CacheFormat) -> CacheFormat:
    """K stored as the one and V as the other. Raises KvtoolError for formats that store both together."""
    for part in (key, value):
        if part.key is None or part.slot_multiple > 1 or part.residual_tokens or part.whole_layers:
            raise KvtoolError(f"a {part.name} cache stores K and V together: it is not one of two formats apart")
    name, calibrated = f"{key.name}/{value.name}", key.calibrated or value.calibrated
    return CacheFormat(name=name, key=key.key, value=value.value, calibrated=calibrated)


def _prepared(cache_format: CacheFormat, way: str) -> CacheFormat:
    kind, _, tokens = way.partition(":")
    for sparse in SPARSE:
        if kind == sparse:
            return _sparse(cache_format, Sparse(way=sparse, tokens=parse_length(tokens or "1k", f"{kind} tokens")))
    name = f"{cache_format.name}+{way}"
    if way == HADAMARD:
        return replace(cache_format, name=name, rotated=True)
    if way != CALIBRATED:
        raise KvtoolError(
            f"unknown way {way[:40]!r} to prepare a cache: use {HADAMARD}, {CALIBRATED}, streaming:N or quest:N"
        )
    if cache_format.calibrated or not any(_takes_scale(v) for v in (cache_format.key, cache_format.value)):
        raise KvtoolError(f"a {cache_format.name} cache has no scale of its own to calibrate: leave +{way} out")
    return replace(cache_format, name=name, calibrated=True)


def _sparse(cache_format: CacheFormat, sparse: Sparse) -> CacheFormat:
    if cache_format.name not in SPARSE_OF:
        raise KvtoolError(f"a {sparse.way} cache is one of {', '.join(SPARSE_OF)}, not of {cache_format.name}")
    key, value, name = cache_format.key, cache_format.value, f"{cache_format.name}+{sparse.way}:{sparse.tokens}"
    return CacheFormat(name=name, key=key, value=value, sparse=sparse)


def _takes_scale(vector: Vector | None) -> bool:
    """Whether a scale of the whole layer changes what is stored."""
    return vector is not None and vector.bits == 8 and not vector.scale_bytes
