"""Every variant the launchers can pick, compiled for one target: `python -m tests.kernels.triton.variants 90`.

Prints one JSON object a line. A compiler that crashes takes its process along, so tests run this in one of their own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch
import triton
from torch import Tensor

from kvtool.kernels.fused import Choice, Normed, Shared
from kvtool.kernels.packed.codec import Codec
from kvtool.kernels.packed.pages import PackedPages
from kvtool.kernels.pages import Pages
from kvtool.kernels.rows import Rows, Softmax
from kvtool.kernels.triton import fused, groups, launch, products, step
from kvtool.kernels.triton.rows import gate
from kvtool.kernels.triton.tiles.rules import Shape, Target, Tile
from kvtool.kernels.weights import ExpertWeights, Gate, GatedWeight, Weight
from tests.kernels.triton.ahead_of_time import Launch, compile_launch, record
from tests.kernels.triton.budgets import SHARED_BYTES

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "int8": torch.int8,
}
FP8 = ("e4m3", "e5m2")
# What differs in code of packed vectors; "wide" are the 16 bits of K or V beside packed ones.
PACKED: dict[str, Callable[[int], Codec]] = {
    "int4": lambda dim: Codec(dim, bits=4, scheme="minimum", scale_bytes=4, group=64),
    "q8_0": lambda dim: Codec(dim, bits=8, scheme="symmetric", scale_bytes=2, group=32),
    "q5_1": lambda dim: Codec(dim, bits=5, scheme="minimum", scale_bytes=4, group=32),
    "q4_0": lambda dim: Codec(dim, bits=4, scheme="signed", scale_bytes=2, group=32),
    "int4_per_token_head": lambda dim: Codec(dim, bits=4, scheme="symmetric", scale_bytes=4),
    "kivi_int2": lambda dim: Codec(dim, bits=2, scheme="minimum", scale_bytes=4, group=64),
    "wide": lambda dim: Codec(dim, bits=16, scheme="bf16"),
}
LONG = 2048  # rows of a long prefill


@dataclass(frozen=True)
class Variant:
    """One call of a launcher. `rows` are the query rows that share a KV head; `seqs` decide whether decode splits."""

    operation: str
    head_dim: int
    rows: int
    page: int = 64
    dtype: str = "bf16"
    cache_dtype: str = "bf16"
    seqs: int = 1
    v_dim: int = 0  # 0: as head_dim; the latent dimension for MLA
    queries: int = 1  # of a sequence in decode
    softcap: float = 0.0
    window: int = 0
    sinks: bool = False
    vector_scales: bool = False
    qk_norm: bool = False
    activation: str = "silu"
    columns: int = 0  # of a product, whose depth is head_dim
    experts: int = 0
    added: bool = False  # a bias and a residual
    tile: tuple[str, ...] = ()  # what its decode's tile does besides: "lists", "integers"

    def __str__(self) -> str:
        return " ".join(str(value) for value in dataclasses.astuple(self))

    def launches(self, target: Target) -> list[Launch]:
        if self.tile:
            target = dataclasses.replace(target, tuned=Besides(self.tile))
        return record(lambda: getattr(self, f"_{self.operation}")(), target)

    def _store(self) -> None:
        rows = _meta(16, self.rows, self.head_dim, dtype=DTYPES[self.dtype])
        launch.store(rows, rows, self._pages(self.rows), _meta(16, dtype=torch.int64))

    def _norm(self) -> None:
        """With `qk_norm` of the branch too, as in Gemma, whose weights are fp32."""
        x = _meta(self.rows, self.head_dim, dtype=DTYPES[self.dtype])
        weight = _meta(self.head_dim, dtype=torch.float32 if self.qk_norm else torch.bfloat16)
        step.add_rms_norm(x, x, weight, weight if self.qk_norm else None, eps=1e-5)

    def _nucleus(self) -> None:
        launch.nucleus(_meta(self.rows, self.columns, dtype=torch.float32), _meta(self.rows, dtype=torch.float32))

    def _gate(self) -> None:
        x = _meta(self.rows, self.head_dim, dtype=DTYPES[self.dtype])
        gate(x, x, Gate(self.activation))

    def _product(self) -> None:
        """Each way but cuBLAS. With `qk_norm` a norm goes before it, and a gate behind it."""
        dtype = DTYPES[self.dtype]
        x, weight = _meta(self.rows, self.head_dim, dtype=dtype), _meta(self.columns, self.head_dim, dtype=dtype)
        bias = _meta(self.columns, dtype=dtype) if self.added else None
        plus = _meta(self.rows, self.columns, dtype=dtype) if self.added else None
        around = products.NOTHING
        if self.qk_norm:
            around = products.Around(_meta(self.head_dim, dtype=dtype), 1e-5, None if self.added else Gate("silu"))
        for name, way in products.candidates(self.rows, weight, around).items():
            if name != products.CUBLAS:
                way(x, weight, bias, plus, around)

    def _likeliest(self) -> None:
        """Of each way but cuBLAS, behind a norm."""
        dtype = DTYPES[self.dtype]
        x, weight = _meta(self.rows, self.head_dim, dtype=dtype), _meta(self.columns, self.head_dim, dtype=dtype)
        around = products.Around(_meta(self.head_dim, dtype=dtype), 1e-5, largest=True)
        for name, way in products.candidates(self.rows, weight, around).items():
            if name != products.CUBLAS:
                way(x, weight, None, None, around)

    def _experts(self) -> None:
        """Two experts a row; `columns` are an expert's inner elements."""
        dtype, (count, inner, hidden) = DTYPES[self.dtype], (self.experts, self.columns, self.head_dim)
        weights = ExpertWeights(
            gate_up=_meta(count, 2 * inner, hidden, dtype=dtype),
            down=_meta(count, hidden, inner, dtype=dtype),
            gate_up_bias=_meta(count, 2 * inner, dtype=dtype) if self.added else None,
            down_bias=_meta(count, hidden, dtype=dtype) if self.added else None,
            gate=Gate(self.activation),
        )
        x, chosen = _meta(self.rows, hidden, dtype=dtype), _meta(self.rows, 2, dtype=torch.int64)
        shares = _meta(self.rows, 2, dtype=torch.float32)
        step.experts(x, weights, chosen, shares, x if self.added else None)
        if self.qk_norm:
            of_all = GatedWeight(_meta(4 * inner, hidden, dtype=dtype), None, weights.gate)
            shared = Shared(of_all, Weight(_meta(hidden, 2 * inner, dtype=dtype)))
            x = Normed(x, _meta(hidden, dtype=dtype), 1e-5)
            fused.experts(x, weights, chosen, shares, x.x, None if self.added else shared)
            fused.route(x, Choice(weight=_meta(count, hidden, dtype=torch.float32), top_k=2))

    def _place(self) -> None:
        step.place(_meta(self.rows, dtype=torch.int64), _meta(self.rows, 64, dtype=torch.int32), self.page)

    def _qkv(self) -> None:
        """As many query heads as KV heads."""
        qkv = _meta(16, 3 * self.rows, self.head_dim, dtype=DTYPES[self.dtype])
        turn, slots = _meta(16, 1, self.head_dim, dtype=DTYPES[self.dtype]), _meta(16, dtype=torch.int64)
        norms = _meta(2 * self.rows, self.head_dim, dtype=DTYPES[self.dtype]) if self.qk_norm else None
        step.split_qkv(qkv, norms, 1e-5, (turn, turn), self._pages(self.rows), slots)

    def _split_latent(self) -> None:
        """DeepSeek's rotary part; head_dim is the row of the cache and v_dim the latent."""
        tokens, rope = self.seqs, self.head_dim - self.v_dim
        q, latent = (
            _meta(tokens, *shape, dtype=DTYPES[self.dtype]) for shape in ((self.rows, 128 + rope), (self.head_dim,))
        )
        turn, norm = (_meta(*shape, dtype=DTYPES[self.dtype]) for shape in ((tokens, 1, rope), (self.v_dim,)))
        slots = _meta(tokens, dtype=torch.int64)
        step.split_latent(q, latent, norm, 1e-6, (turn, turn), self._latents(), slots, tokens)
        w_uk = _meta(self.rows, 256, self.v_dim, dtype=DTYPES[self.dtype])[:, :128]
        fused.absorbed(q, latent, norm, 1e-6, (turn, turn), self._latents(), slots, w_uk)

    def _gather(self) -> Tensor:
        return launch.gather(self._latents(), _meta(64, dtype=torch.int32), DTYPES[self.dtype])

    def _mha_prefill(self) -> Tensor:
        """Decompressed MLA: K and V as halves of one product's rows, the rotary key beside them."""
        heads = _meta(64, self.page, self.rows, 2 * self.head_dim, dtype=DTYPES[self.dtype])
        k, v = heads.chunk(2, dim=3)
        k_rope = _meta(64, self.page, 512 + 64, dtype=DTYPES[self.dtype])[..., 512:]
        q = _meta(LONG, self.rows, self.head_dim + 64, dtype=DTYPES[self.dtype])
        return launch.prefill(q, Pages(k, v, k_rope=k_rope), self._sequences(LONG), Softmax(0.1))

    def _decode(self) -> Tensor:
        return launch.decode(self._q(self.seqs), self._pages(1), self._sequences(), self._softmax(self.rows))

    def _prefill(self) -> Tensor:
        q = _meta(LONG, 1, self.head_dim, dtype=DTYPES[self.dtype])
        return launch.prefill(q, self._pages(1), self._sequences(self.rows), self._softmax(1))

    def _mla_decode(self) -> Tensor:
        return launch.decode(self._q(self.seqs), self._latents(), self._sequences(), Softmax(0.1))

    def _mla_prefill(self) -> Tensor:
        return launch.prefill(self._q(LONG), self._latents(), self._sequences(1), Softmax(0.1))

    def _groups(self) -> None:
        """Packed vectors: stored, unpacked for a prefill, and decoded."""
        pages = self._packed()
        rows = _meta(16, 1, self.head_dim, dtype=DTYPES[self.dtype])
        groups.store_groups(rows, pages.k, _meta(16, dtype=torch.int64), pages.key)
        groups.unpack_groups(pages.k, _meta(64, dtype=torch.int32), pages.key, DTYPES[self.dtype])
        groups.decode_groups(self._q(self.seqs), pages, self._sequences(), self._softmax(self.rows))

    def _packed(self) -> PackedPages:
        key = PACKED[self.cache_dtype](self.head_dim)
        k, v = (_meta(64, self.page, 1, key.stored_bytes, dtype=torch.uint8) for _ in range(2))
        return PackedPages(k=k, v=v, key=key, value=key)

    def _softmax(self, heads: int) -> Softmax:
        sinks = _meta(heads, dtype=torch.bfloat16) if self.sinks else None
        return Softmax(0.1, window=self.window, softcap=self.softcap, sinks=sinks)

    def _scale(self, heads: int) -> float | Tensor:
        return _meta(64, self.page, heads, dtype=torch.float32) if self.vector_scales else 1.0

    def _q(self, seqs: int) -> Tensor:
        return _meta(seqs * self.queries, self.rows, self.head_dim, dtype=DTYPES[self.dtype])

    def _pages(self, heads: int) -> Pages:
        dtype, scale = DTYPES[self.cache_dtype], self._scale(heads)
        k = _meta(64, self.page, heads, self.head_dim, dtype=dtype)
        return Pages(k, _meta(64, self.page, heads, self.v_dim or self.head_dim, dtype=dtype), scale, scale)

    def _latents(self) -> Pages:
        rows = _meta(64, self.page, self.head_dim, dtype=DTYPES[self.cache_dtype])
        return Pages(rows, k_scale=self._scale(2), latent_dim=self.v_dim)

    def _sequences(self, max_query_len: int | None = None) -> Rows:
        """Of a prefill with `max_query_len`."""
        starts = None if max_query_len is None else _meta(self.seqs + 1, dtype=torch.int32)
        return Rows(_meta(self.seqs, 64, dtype=torch.int32), _meta(self.seqs, dtype=torch.int32), starts, max_query_len)


@dataclass(frozen=True)
class Besides:
    """Tiles of the rules that do something besides."""

    fields: tuple[str, ...]

    def get(self, shape: Shape, rule: Tile) -> Tile:
        return dataclasses.replace(rule, **dict.fromkeys(self.fields, True))


def variants(capability: int) -> Iterator[Variant]:
    """Each tile with each way to walk pages, for the dtypes that differ in code; then the rest once each."""
    everything = _all_variants()
    if capability == 89:  # less shared memory, else as 80: what is short there is the room for wide tiles
        everything = (v for v in everything if v.head_dim >= 128 and (v.page, v.dtype) == (64, "bf16"))
    return (v for v in everything if capability > 80 or v.cache_dtype not in FP8)


def _all_variants() -> Iterator[Variant]:
    yield from _tiles()
    yield from _long_tiles(page=16)
    yield from _long_tiles(cache_dtype="e4m3")
    yield from _long_tiles(page=16, cache_dtype="e4m3")
    yield from _long_tiles(page=16, dtype="fp32", cache_dtype="fp32")
    for dtype, cache_dtype in (("fp16", "fp16"), ("fp16", "e5m2"), ("bf16", "int8"), ("fp32", "bf16")):
        yield Variant("decode", 128, 16, dtype=dtype, cache_dtype=cache_dtype)
        yield Variant("store", 128, 8, dtype=dtype, cache_dtype=cache_dtype)
    for head_dim in (80, 96, 112, 192):
        yield Variant("decode", head_dim, 16)
        yield Variant("prefill", head_dim, LONG)
    yield Variant("prefill", 192, LONG, v_dim=128)
    yield Variant("decode", 128, 16, seqs=4096)  # so many that a sequence is not split
    yield from _features()


def _features() -> Iterator[Variant]:
    """Once in decode and once in prefill, at the head dimension of most models."""
    for operation, rows in (("decode", 16), ("prefill", LONG)):
        yield Variant(operation, 128, rows, softcap=30.0)
        yield Variant(operation, 64, rows, sinks=True, window=128)  # gpt-oss
        yield Variant(operation, 128, rows, window=4096)
        for cache_dtype in ("e4m3", "int8"):
            yield Variant(operation, 128, rows, cache_dtype=cache_dtype, vector_scales=True)
    yield Variant("decode", 128, 8, queries=8)
    yield Variant("decode", 128, 16, seqs=64, tile=("lists",))
    yield Variant("mla_decode", 576, 32, v_dim=512, seqs=64, tile=("lists",))
    yield Variant("decode", 128, 16, cache_dtype="int8", vector_scales=True, tile=("integers",))
    yield Variant("decode", 64, 16, page=16, dtype="fp16", cache_dtype="int8", tile=("integers",))
    for head_dim, rows in ((64, 4), (128, 4), (128, 64), (256, 16)):
        yield Variant("groups", head_dim, rows, cache_dtype="int4")
    for dtype, seqs in (("fp16", 4096), ("fp32", 1)):
        yield Variant("groups", 128, 8, dtype=dtype, cache_dtype="int4", seqs=seqs, sinks=True, softcap=30.0)
    for cache_dtype in ("q8_0", "q5_1", "q4_0", "int4_per_token_head", "kivi_int2", "wide"):
        yield Variant("groups", 128, 4, cache_dtype=cache_dtype)
    yield Variant("groups", 256, 64, cache_dtype="q5_1")
    yield Variant("mla_decode", 576, 16, v_dim=512, cache_dtype="int8", vector_scales=True)
    yield Variant("store", 128, 8, cache_dtype="int8", vector_scales=True)
    yield Variant("qkv", 128, 8)
    yield Variant("qkv", 128, 8, cache_dtype="e4m3", qk_norm=True)
    yield Variant("qkv", 128, 8, cache_dtype="int8", vector_scales=True, qk_norm=True)
    for hidden_size in (2048, 16384):
        yield Variant("norm", hidden_size, 16)
        yield Variant("norm", hidden_size, 16, qk_norm=True)
    for rows in (1, 4, 16):
        yield Variant("place", 0, rows)
    for operation in ("split_latent", "gather"):
        for cache_dtype, vector_scales in (("bf16", False), ("e4m3", False), ("int8", True)):
            yield Variant(operation, 576, 16, v_dim=512, cache_dtype=cache_dtype, vector_scales=vector_scales)
    for page in (16, 64):
        yield Variant("mha_prefill", 128, 16, page=page)
    yield Variant("mha_prefill", 128, 16, dtype="fp16")
    for activation in ("silu", "gelu", "gelu_pytorch_tanh"):
        yield Variant("gate", 14336, 16, activation=activation)
    yield Variant("nucleus", 0, 64, columns=128256)
    yield from _products()


def _products() -> Iterator[Variant]:
    """Few rows of a wide weight and of a narrow one, which is split; experts of few rows and many, gpt-oss's too."""
    for rows in (1, 2, 4, 16, 32, 64):
        yield Variant("product", 4096, rows, columns=4096, added=True)
        yield Variant("product", 4096, rows, columns=28672, qk_norm=True)
    for rows in (1, 4, 16):
        yield Variant("product", 1024, rows, columns=1024, qk_norm=True, added=True)
        yield Variant("product", 1024, rows, columns=2048, qk_norm=True, dtype="fp32")
    yield Variant("product", 2048, 1, columns=128256)
    for rows in (1, 64):
        yield Variant("likeliest", 2048, rows, columns=128256)
    yield Variant("product", 2880, 1, columns=4096, dtype="fp16")
    yield Variant("product", 2880, 64, columns=4096, dtype="fp16")
    for rows in (1, 16, 64):
        yield Variant("product", 1024, rows, columns=1024, dtype="fp32", added=True)
    for rows in (1, 64, 2048, 16384):
        yield Variant("experts", 2048, rows, columns=1408, experts=64, qk_norm=rows <= 64)
    for rows in (1, 512, 16384):
        yield Variant(
            "experts", 2880, rows, columns=2880, experts=32, activation="clamped_swiglu", added=True, qk_norm=rows == 1
        )
    yield Variant("experts", 4096, 2, columns=14336, experts=8)
    yield Variant("experts", 2048, 64, columns=768, experts=256, dtype="fp32", added=True)
    yield Variant("experts", 2048, 16384, columns=768, experts=128, dtype="fp16", activation="gelu")


def _tiles() -> Iterator[Variant]:
    """Each tile of 16-bit queries over a 16-bit cache."""
    for head_dim in (64, 128, 256):
        for rows in (16, 64):
            yield Variant("decode", head_dim, rows)
        for rows in (16, 64, LONG):
            yield Variant("prefill", head_dim, rows)
    for operation in ("mla_decode", "mla_prefill"):
        for heads in (16, 128):
            yield Variant(operation, 576, heads, v_dim=512)
    yield Variant("mla_decode", 576, 32, v_dim=512)
    yield Variant("mla_decode", 576, 128, v_dim=512, page=16)
    yield Variant("mla_decode", 576, 128, v_dim=512, dtype="fp16", cache_dtype="fp16")
    for heads in (16, 128):
        for page in (16, 64):
            yield Variant("mla_decode", 576, heads, v_dim=512, page=page, seqs=4096)


def _long_tiles(**shape: object) -> Iterator[Variant]:
    """One decode and one long prefill a head dimension."""
    for head_dim in (64, 128, 256):
        yield Variant("decode", head_dim, 16, **shape)
        yield Variant("prefill", head_dim, LONG, **shape)
    yield Variant("mla_decode", 576, 16, v_dim=512, **shape)


def compile_one(variant: Variant, index: int, capability: int) -> dict[str, object]:
    """The index-th launch of a variant, compiled: what it is, what it costs, or the compiler's error."""
    one = variant.launches(_target(capability))[index]
    row = dataclasses.asdict(variant) | {"name": f"{one.name} {variant}", "kernel": one.name}
    row |= {
        "triton": triton.__version__,
        "block_m": one.arguments.get("BLOCK_M", 0),
        "block_n": one.arguments.get("BLOCK_N", 0),
        "by_descriptor": bool(one.arguments.get("TMA")),
    }
    try:
        return row | dataclasses.asdict(compile_launch(one, capability)) | {"error": None}
    except Exception as error:  # whatever the compiler raises is a result to report
        return row | {"error": f"{type(error).__name__}: {error}"[:500]}


def compile_all(capability: int) -> Iterator[dict[str, object]]:
    """Each distinct launch once, in parallel."""
    distinct: dict[str, tuple[Variant, int, int]] = {}
    for variant in variants(capability):
        for index, one in enumerate(variant.launches(_target(capability))):
            distinct.setdefault(one.key(), (variant, index, capability))
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        yield from pool.map(compile_one, *zip(*distinct.values(), strict=True))


def _target(capability: int) -> Target:
    return Target(capability, multiprocessors=132, shared_bytes=SHARED_BYTES[capability])


def _meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


if __name__ == "__main__":
    for result in compile_all(int(sys.argv[1])):
        print(json.dumps(result), flush=True)
