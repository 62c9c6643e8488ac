"""The tensors of the block pool: one K and one V, or one latent, for each layer, shaped by the specs that size them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvtool.cache.manager import PageCopy
from kvtool.errors import KvtoolError
from kvtool.sizing.formats import CacheFormat
from kvtool.sizing.specs import CacheSpec, FullSpec, HeadsSpec, LatentSpec, SlidingSpec

if TYPE_CHECKING:
    from kvtool.kernels.interface import Scale

CACHE_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "fp8_per_token_head": torch.float8_e4m3fn,
    "int8_per_token_head": torch.int8,
}


@dataclass(frozen=True, slots=True)
class LayerCache:
    """k [P, B, kv_heads, k_head_dim] and v [P, B, kv_heads, v_head_dim]; for MLA `k` is the latent [P, B, R+E].

    A scale is 1, or fp32 [P, B, kv_heads], one beside each vector; for MLA [P, B, 2], the latent's and its key's.
    """

    k: Tensor
    v: Tensor | None
    k_scale: Scale = 1.0
    v_scale: Scale = 1.0

    @property
    def tensors(self) -> list[Tensor]:
        """All that is stored, page after page."""
        return [held for held in (self.k, self.v, self.k_scale, self.v_scale) if isinstance(held, Tensor)]

    def map(self, function: Callable[[Tensor], Tensor]) -> LayerCache:
        """The cache of what `function` makes of each tensor."""
        parts = (self.k_scale, self.v_scale)
        k_scale, v_scale = (function(scale) if isinstance(scale, Tensor) else scale for scale in parts)
        return LayerCache(function(self.k), None if self.v is None else function(self.v), k_scale, v_scale)


class KvPool:
    """All pages of all layers. Page p of every layer belongs to the same tokens."""

    def __init__(self, specs: tuple[CacheSpec, ...], num_pages: int, block_size: int, device: torch.device) -> None:
        self.num_pages = num_pages
        self.block_size = block_size
        self.layers = [_layer_cache(spec, num_pages, block_size, device) for spec in specs]

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


def _layer_cache(spec: CacheSpec, num_pages: int, block_size: int, device: torch.device) -> LayerCache:
    # Zeros, not empty: a recycled allocation may hold NaN, and masked lanes must not multiply by it.
    if isinstance(spec, LatentSpec) and not spec.sparse:
        dtype = cache_dtype(spec.cache_format.name)
        latents = torch.zeros(num_pages, block_size, spec.k_head_dim, dtype=dtype, device=device)
        return LayerCache(latents, None, _scales(spec, (num_pages, block_size, 2), device))
    if isinstance(spec, HeadsSpec):
        dtype = cache_dtype(spec.cache_format.name)
        shape = (num_pages, block_size, spec.kv_heads)
        k = torch.zeros(*shape, spec.k_head_dim, dtype=dtype, device=device)
        v = torch.zeros(*shape, spec.v_head_dim, dtype=dtype, device=device)
        return LayerCache(k, v, _scales(spec, shape, device), _scales(spec, shape, device))
    raise KvtoolError(f"the engine has no {spec.kind} layers yet: `kvtool size` knows them")


def _scales(spec: HeadsSpec | LatentSpec, shape: tuple[int, ...], device: torch.device) -> Scale:
    """One fp32 beside each of so many vectors, where the format keeps it."""
    return torch.zeros(shape, dtype=torch.float32, device=device) if _is_scaled(spec.cache_format) else 1.0


def _is_scaled(cache_format: CacheFormat) -> bool:
    """Whether a scale stands beside every vector."""
    return cache_format.key is not None and cache_format.key.scale_bytes > 0
