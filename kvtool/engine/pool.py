"""The tensors of the block pool: one K and one V, or one latent, for each layer, shaped by the specs that size them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvtool.cache.manager import PageCopy
from kvtool.kernels.packed.codec import Codec, static_scale
from kvtool.kernels.packed.pages import PackedPages
from kvtool.kernels.pages import Pages
from kvtool.kernels.sparse.quest import QuestPages
from kvtool.kernels.sparse.streaming import StreamingPages
from kvtool.sizing.formats import CacheFormat, Vector
from kvtool.sizing.specs import CacheSpec, FullSpec, HeadsSpec, LatentSpec, QuestSpec, SlidingSpec, StreamingSpec
from kvtool.system.errors import KvtoolError

if TYPE_CHECKING:
    from kvtool.kernels.pages import Scale

CACHE_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "fp8_per_token_head": torch.float8_e4m3fn,
    "int8_per_token_head": torch.int8,
}
STATIC_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}  # a scale a layer

Amax = tuple[float | None, float | None]
"""The largest magnitudes of a layer's K and V; None where they were not measured."""
NO_AMAX: Amax = (None, None)


class KvPool:
    """All pages of all layers. Page p of every layer belongs to the same tokens. `amax` by layer, where scales were
    calibrated."""

    def __init__(
        self,
        specs: tuple[CacheSpec, ...],
        num_pages: int,
        block_size: int,
        device: torch.device,
        amax: tuple[Amax, ...] | None = None,
    ) -> None:
        self.num_pages = num_pages
        self.block_size = block_size
        of_layers = zip(specs, amax or (NO_AMAX,) * len(specs), strict=True)
        self.layers = [layer_pages(spec, num_pages, block_size, device, own) for spec, own in of_layers]

    @property
    def bytes(self) -> int:
        """What the tensors hold, asked of the tensors."""
        return sum(tensor.numel() * tensor.element_size() for layer in self.layers for tensor in layer.tensors)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers."""
        return self.bytes // self.num_pages

    def copy_pages(self, copies: list[PageCopy]) -> None:
        """Copy-on-write of whole pages, in every layer."""
        for layer in self.layers:
            for tensor in layer.tensors:
                for copy in copies:
                    tensor[copy.target].copy_(tensor[copy.source])


def pool_specs(specs: tuple[CacheSpec, ...]) -> tuple[CacheSpec, ...]:
    """What the pool allocates for them: one block table serves all layers, so a sliding layer keeps every page."""
    return tuple(
        FullSpec(
            kv_heads=spec.kv_heads,
            k_head_dim=spec.k_head_dim,
            v_head_dim=spec.v_head_dim,
            cache_format=spec.cache_format,
        )
        if isinstance(spec, SlidingSpec)
        else spec
        for spec in specs
    )


def cache_dtype(name: str) -> torch.dtype:
    """The torch dtype of a cache format that the engine can run. Raises KvtoolError."""
    if name not in CACHE_DTYPES:
        raise KvtoolError(f"the engine cannot run a {name!r} cache: use one of {', '.join(CACHE_DTYPES)}")
    return CACHE_DTYPES[name]


def is_packed(cache_format: CacheFormat) -> bool:
    """Whether its vectors are packed bytes, which torch writes and reads on a CPU, and Triton on a GPU."""
    plain = STATIC_DTYPES if cache_format.calibrated else CACHE_DTYPES
    return cache_format.rotated or cache_format.base_name not in plain


def require_runnable(cache_format: CacheFormat) -> None:
    """Raises KvtoolError for a format that an engine of many sequences cannot keep."""
    name = cache_format.name
    if is_packed(cache_format) and not cache_format.storable:
        cache_dtype(name)
    if cache_format.residual_tokens:
        raise KvtoolError(
            f"the engine cannot run a {name!r} cache: use one of {', '.join(CACHE_DTYPES)}; one with its newest tokens "
            "apart from the pages runs in `kvtool bench --parts accuracy` alone"
        )


def codec(vector: Vector, elements: int, amax: float | None = None) -> Codec:
    """What packs vectors of so many elements; a vector kept by channel packs its tokens, of a group each. `amax` is the
    largest magnitude that a scale of the whole layer is to reach; None leaves that at 1."""
    assert vector.scheme is not None
    return Codec(
        elements=vector.group or elements if vector.per_channel else elements,
        bits=vector.bits,
        scheme=vector.scheme,
        scale_bytes=vector.scale_bytes,
        group=vector.group,
        static_scale=1.0 if amax is None else static_scale(amax, vector.scheme, vector.bits),
    )


def layer_pages(
    spec: CacheSpec,
    num_pages: int,
    block_size: int,
    device: torch.device,
    amax: Amax = NO_AMAX,
) -> Pages:
    """The pages of one layer; `amax` of its K and V, where their scales were calibrated. Raises KvtoolError."""
    # Zeros, not empty: a recycled allocation may hold NaN, and masked lanes must not multiply by it.
    if isinstance(spec, LatentSpec) and not spec.sparse:
        dtype = cache_dtype(spec.cache_format.name)
        latents = torch.zeros(num_pages, block_size, spec.k_head_dim, dtype=dtype, device=device)
        scales = _scales(spec, (num_pages, block_size, 2), device)
        return Pages(latents, k_scale=scales, latent_dim=spec.kv_lora_rank)
    if isinstance(spec, HeadsSpec) and is_packed(spec.cache_format):
        return _packed_pages(spec, num_pages, block_size, device, amax)
    if isinstance(spec, HeadsSpec):
        name, calibrated = spec.cache_format.base_name, spec.cache_format.calibrated
        dtype = STATIC_DTYPES[name] if calibrated else cache_dtype(name)
        shape = (num_pages, block_size, spec.kv_heads)
        k = torch.zeros(*shape, spec.k_head_dim, dtype=dtype, device=device)
        v = torch.zeros(*shape, spec.v_head_dim, dtype=dtype, device=device)
        if spec.cache_format.sparse is not None:
            return _sparse_pages(spec, k, v)
        if calibrated:
            k_scale, v_scale = _static_scales(spec.cache_format, amax)
            return Pages(k, v, k_scale, v_scale)
        return Pages(k, v, _scales(spec, shape, device), _scales(spec, shape, device))
    raise KvtoolError(f"the engine has no {spec.kind} layers yet: `kvtool size` knows them")


def _static_scales(cache_format: CacheFormat, amax: Amax) -> list[float]:
    """Of a layer's K and V; 1 before they are measured."""
    vectors = zip((cache_format.key, cache_format.value), amax, strict=True)
    return [
        1.0
        if most is None or vector is None or vector.scheme is None
        else static_scale(most, vector.scheme, vector.bits)
        for vector, most in vectors
    ]


def _sparse_pages(spec: HeadsSpec, k: Tensor, v: Tensor) -> Pages:
    sparse = spec.cache_format.sparse
    assert sparse is not None
    if isinstance(spec, StreamingSpec):
        return StreamingPages(k=k, v=v, window_pages=sparse.pages - 1)
    assert isinstance(spec, QuestSpec)
    bounds = torch.zeros(len(k), spec.kv_heads, 2 * spec.k_head_dim, dtype=k.dtype, device=k.device)
    return QuestPages(k=k, v=v, bounds=bounds, read_pages=sparse.pages)


def _packed_pages(
    spec: HeadsSpec,
    num_pages: int,
    block_size: int,
    device: torch.device,
    amax: Amax,
) -> PackedPages:
    cache_format = spec.cache_format
    assert cache_format.key is not None
    assert cache_format.value is not None
    key = codec(cache_format.key, spec.k_head_dim, amax[0])
    value = codec(cache_format.value, spec.v_head_dim, amax[1])
    if device.type != "cpu" and (odd := next((one for one in (key, value) if not one.in_pairs), None)):
        raise KvtoolError(
            f"a {cache_format.name} cache of heads of {odd.elements} has groups that differ, and a GPU no kernels for "
            "them: use --device cpu, or fp8"
        )
    k, v = (
        torch.zeros(num_pages, block_size, spec.kv_heads, one.stored_bytes, dtype=torch.uint8, device=device)
        for one in (key, value)
    )
    return PackedPages(k=k, v=v, key=key, value=value, rotated=cache_format.rotated)


def _scales(spec: HeadsSpec | LatentSpec, shape: tuple[int, ...], device: torch.device) -> Scale:
    """One fp32 beside each of so many vectors, where the format keeps it."""
    return torch.zeros(shape, dtype=torch.float32, device=device) if _is_scaled(spec.cache_format) else 1.0


def _is_scaled(cache_format: CacheFormat) -> bool:
    """Whether a scale stands beside every vector."""
    return cache_format.key is not None and cache_format.key.scale_bytes > 0
