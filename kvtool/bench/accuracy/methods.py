"""One way to keep a cache, beside the run's own: its pages for a sequence, and the kernels that write and read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvtool.cache.block_table import GONE
from kvtool.cache.window import SINK_PAGES
from kvtool.engine.batch import sequence_batch
from kvtool.engine.kept import Kept
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.pool import NO_AMAX, Amax, codec, is_packed, layer_pages
from kvtool.kernels.interface import Kernels
from kvtool.kernels.packed.kivi import KiviPages, kivi_pages
from kvtool.kernels.pages import Pages
from kvtool.sizing.formats import CacheFormat, parse_cache_format
from kvtool.sizing.specs import CacheSpec, HeadsSpec
from kvtool.system.errors import KvtoolError
from kvtool.units import ceil_div


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A cache format over the layers of a model; those in `whole_layers` keep the run's own. `amax`: what a calibrated
    format's scales follow from, layer by layer."""

    loaded: LoadedModel
    cache_format: CacheFormat
    whole_layers: tuple[int, ...]
    specs: tuple[CacheSpec, ...]
    kernels: Kernels
    amax: tuple[Amax, ...]

    @property
    def step_tokens(self) -> int | None:
        """Tokens that a step may take; None for any number."""
        key = self.cache_format.key
        return key.group if key is not None and key.per_channel else None

    @property
    def description(self) -> str | None:
        """How it is prepared beside rounding; None for none."""
        return ", ".join(filter(None, (self.cache_format.method, self.whole))) or None

    @property
    def whole(self) -> str | None:
        """The layers that keep the run's own, in words."""
        return f"layers {', '.join(map(str, self.whole_layers))} whole" if self.whole_layers else None

    def layer(self, index: int, tokens: int) -> Pages:
        """Empty pages of one layer for a text of so many tokens, which are all there until its end."""
        return self._pages(index, ceil_div(tokens, self.loaded.config.block_size))

    def layers(self, tokens: int) -> list[Pages]:
        return [self.layer(index, tokens) for index in range(len(self.specs))]

    def held(self, tokens: int) -> list[Pages]:
        """Empty pages of all layers, as many as a sequence of so many tokens holds."""
        return [self._pages(i, spec.pages(tokens, self.loaded.config.block_size)) for i, spec in enumerate(self.specs)]

    def table(self, tokens: int) -> list[int]:
        """Where the tokens of such a sequence lie in `held`: in pages in order, but for those that it let go of."""
        block_size = self.loaded.config.block_size
        count, held = ceil_div(tokens, block_size), self.specs[-1].pages(tokens, block_size)
        if self.cache_format.sparse is None or held == count:
            return list(range(count))
        return [*range(SINK_PAGES), *[GONE] * (count - held), *range(SINK_PAGES, held)]

    def _pages(self, index: int, num_pages: int) -> Pages:
        spec = self.specs[index]
        if isinstance(spec, HeadsSpec) and spec.cache_format.residual_tokens:
            return _kivi(spec, self.loaded.device)
        return layer_pages(spec, num_pages, self.loaded.config.block_size, self.loaded.device, self.amax[index])

    def logits(self, token_ids: Sequence[int], layers: list[Pages], kernels: Kernels | None = None) -> Tensor:
        """Logits [L, vocab] behind each token, whose K and V the (empty) layers get first."""
        step = self.step_tokens or len(token_ids)
        found = [
            self.loaded.transformer(
                sequence_batch(token_ids, start, start + step, self.loaded.config.block_size, self.loaded.device),
                layers,
                kernels or self.kernels,
            )
            for start in range(0, len(token_ids), step)
        ]
        return torch.cat(found)

    def of(self, loaded: LoadedModel) -> Method:
        """The same way to keep the cache of another load of the model, with the same scales."""
        return spared(replace(self, loaded=loaded), self.whole_layers)

    def predicted_bytes(self, tokens: int) -> int:
        """What the specs say of such a sequence: in whole pages, but for what is kept without pages."""
        block_size = self.loaded.config.block_size
        return sum(
            spec.stored_bytes(tokens) if self.step_tokens else spec.allocated_bytes(tokens, block_size)
            for spec in self.specs
        )


def held_bytes(layers: Sequence[Pages]) -> int:
    """What the layers' tensors hold, asked of the tensors."""
    for pages in layers:
        if isinstance(pages, KiviPages):
            pages.settle()
    return sum(tensor.numel() * tensor.element_size() for pages in layers for tensor in pages.tensors)


def reference_method(loaded: LoadedModel) -> Method:
    """The cache that the run was loaded with. Raises KvtoolError where that is quantised itself."""
    if loaded.cache_format.name not in ("fp32", "bf16", "fp16"):
        raise KvtoolError(f"caches are compared with fp32, bf16 or fp16, not with {loaded.cache_format.name}")
    return _method(loaded, loaded.kept, (), loaded.specs)


def method(loaded: LoadedModel, name: str, whole_layers: tuple[int, ...] = ()) -> Method:
    """The format called `name`. Raises KvtoolError for one that cannot be written and read here."""
    cache_format = parse_cache_format(name, loaded.dtype)
    if not cache_format.storable:
        raise KvtoolError(f"a {cache_format.name} cache can be sized, but not run: how it becomes bits is not here")
    outside = [index for index in whole_layers if not 0 <= index < loaded.model.num_layers]
    if outside:
        raise KvtoolError(f"layer {outside[0]} is not one of the {loaded.model.num_layers}, numbered from 0")
    kept = loaded.keeping(cache_format, as_decoded=True)
    if whole_layers and kept.window is not None:
        raise KvtoolError("a streaming cache lets go of a page in all layers at once: none of them can be left whole")
    specs = tuple(
        whole if i in whole_layers else spec
        for i, (spec, whole) in enumerate(zip(kept.specs, loaded.specs, strict=True))
    )
    if is_packed(cache_format) and not all(isinstance(spec, HeadsSpec) for spec in specs):
        raise KvtoolError(f"a {cache_format.name} cache packs K and V heads: the latents of {loaded.model.id} are none")
    return _method(loaded, kept, whole_layers, specs)


def spared(own: Method, whole_layers: tuple[int, ...]) -> Method:
    """The same with those layers left whole."""
    return replace(method(own.loaded, own.cache_format.name, whole_layers), amax=own.amax)


def calibrated(method: Method, amax: Sequence[Amax]) -> Method:
    """The method with the scales that reach these magnitudes, layer by layer; unchanged where it takes none."""
    return replace(method, amax=tuple(amax)) if method.cache_format.calibrated else method


def _method(loaded: LoadedModel, kept: Kept, whole_layers: tuple[int, ...], specs: tuple[CacheSpec, ...]) -> Method:
    return Method(
        loaded=loaded,
        cache_format=kept.cache_format,
        whole_layers=whole_layers,
        specs=specs,
        kernels=kept.kernels,
        amax=(NO_AMAX,) * len(specs),
    )


def _kivi(spec: HeadsSpec, device: torch.device) -> KiviPages:
    cache_format = spec.cache_format
    assert cache_format.key is not None
    assert cache_format.value is not None
    return kivi_pages(
        codec(cache_format.key, spec.k_head_dim),
        codec(cache_format.value, spec.v_head_dim),
        kv_heads=spec.kv_heads,
        k_head_dim=spec.k_head_dim,
        residual=cache_format.residual_tokens,
        rotated=cache_format.rotated,
        device=device,
    )
