"""The tensors of the block pool: one K and one V, or one latent, for each layer, shaped by the specs that size them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kvtool.cache.manager import PageCopy
from kvtool.errors import KvtoolError
from kvtool.kernels.interface import Pages
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


class KvPool:
    """All pages of all layers. Page p of every layer belongs to the same tokens."""

    def __init__(self, specs: tuple[CacheSpec, ...], num_pages: int, block_size: int, device: torch.device) -> None:
        self.num_pages = num_pages
        self.block_size = block_size
        self.layers = [_layer_pages(spec, num_pages, block_size, device) for spec in specs]

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


def _layer_pages(spec: CacheSpec, num_pages: int, block_size: int, device: torch.device) -> Pages:
    # Zeros, not empty: a recycled allocation may hold NaN, and masked lanes must not multiply by it.
    if isinstance(spec, LatentSpec) and not spec.sparse:
        dtype = cache_dtype(spec.cache_format.name)
        latents = torch.zeros(num_pages, block_size, spec.k_head_dim, dtype=dtype, device=device)
        scales = _scales(spec, (num_pages, block_size, 2), device)
        return Pages(latents, k_scale=scales, latent_dim=spec.kv_lora_rank)
    if isinstance(spec, HeadsSpec):
        dtype = cache_dtype(spec.cache_format.name)
        shape = (num_pages, block_size, spec.kv_heads)
        k = torch.zeros(*shape, spec.k_head_dim, dtype=dtype, device=device)
        v = torch.zeros(*shape, spec.v_head_dim, dtype=dtype, device=device)
        return Pages(k, v, _scales(spec, shape, device), _scales(spec, shape, device))
    raise KvtoolError(f"the engine has no {spec.kind} layers yet: `kvtool size` knows them")


def _scales(spec: HeadsSpec | LatentSpec, shape: tuple[int, ...], device: torch.device) -> Scale:
    """One fp32 beside each of so many vectors, where the format keeps it."""
    return torch.zeros(shape, dtype=torch.float32, device=device) if _is_scaled(spec.cache_format) else 1.0


def _is_scaled(cache_format: CacheFormat) -> bool:
    """Whether a scale stands beside every vector."""
    return cache_format.key is not None and cache_format.key.scale_bytes > 0
