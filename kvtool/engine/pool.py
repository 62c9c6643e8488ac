"""The tensors of the block pool: one K and one V, or one latent, for each layer, shaped by the specs that size them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvtool.cache.manager import PageCopy
from kvtool.errors import KvtoolError
from kvtool.sizing.specs import CacheSpec, FullSpec, HeadsSpec, LatentSpec, SlidingSpec

CACHE_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


@dataclass(frozen=True, slots=True)
class LayerCache:
    """k [P, B, kv_heads, k_head_dim] and v [P, B, kv_heads, v_head_dim]; for MLA `k` is the latent [P, B, R+E]."""

    k: Tensor
    v: Tensor | None


class KvPool:
    """All pages of all layers. Page p of every layer belongs to the same tokens."""

    def __init__(self, specs: tuple[CacheSpec, ...], num_pages: int, block_size: int, device: torch.device) -> None:
        self.num_pages = num_pages
        self.block_size = block_size
        self.layers = [_layer_cache(spec, num_pages, block_size, device) for spec in specs]

    @property
    def bytes(self) -> int:
        """What the tensors hold, asked of the tensors."""
        tensors = [tensor for layer in self.layers for tensor in (layer.k, layer.v) if tensor is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers."""
        return self.bytes // self.num_pages

    def copy_pages(self, copies: list[PageCopy]) -> None:
        """Copy-on-write of whole pages, in every layer."""
        for layer in self.layers:
            for tensor in (layer.k, layer.v):
                if tensor is not None:
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
        return LayerCache(torch.zeros(num_pages, block_size, spec.k_head_dim, dtype=dtype, device=device), None)
    if isinstance(spec, HeadsSpec):
        dtype = cache_dtype(spec.cache_format.name)
        shape = (num_pages, block_size, spec.kv_heads)
        return LayerCache(
            torch.zeros(*shape, spec.k_head_dim, dtype=dtype, device=device),
            torch.zeros(*shape, spec.v_head_dim, dtype=dtype, device=device),
        )
    raise KvtoolError(f"the engine has no {spec.kind} layers yet: `kvtool size` knows them")
