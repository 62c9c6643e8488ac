"""What a run keeps of each token: the format of its cache, what sizes it, and the kernels that write and read it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvtool.cache.window import SinkWindow
from kvtool.catalog.decoder import Decoder
from kvtool.catalog.model import Model
from kvtool.engine.decoder.rope import rope_frequencies
from kvtool.engine.decoder.transformer import rotary_dim, runnable_decoder
from kvtool.engine.pool import is_packed, pool_specs
from kvtool.kernels.interface import Kernels
from kvtool.kernels.packed.pages import packed
from kvtool.kernels.sparse.kernels import sparse
from kvtool.sizing.formats import CacheFormat
from kvtool.sizing.layers import layer_specs
from kvtool.sizing.specs import CacheSpec
from kvtool.system.errors import KvtoolError


@dataclass(frozen=True, slots=True)
class Kept:
    """`specs` by layer; `window` where a sequence lets go of pages."""

    cache_format: CacheFormat
    specs: tuple[CacheSpec, ...]
    kernels: Kernels
    window: SinkWindow | None = None


def kept(
    model: Model,
    cache_format: CacheFormat,
    base: Kernels,
    *,
    block_size: int,
    device: torch.device,
    as_decoded: bool = False,
    max_step_tokens: int | None = None,
) -> Kept:
    """The cache of a model in that format, by `base` kernels; `as_decoded` reads in a prefill what a decode would.
    Raises KvtoolError for a model whose attention cannot be sparse."""
    cache_format = cache_format.paged(block_size)
    specs = pool_specs(layer_specs(model, cache_format))
    if is_packed(cache_format):
        return Kept(cache_format, specs, packed(base))
    if cache_format.sparse is None:
        return Kept(cache_format, specs, base)
    decoder = runnable_decoder(model)
    _require_plain_attention(model, decoder, cache_format.sparse.way)
    frequencies = rope_frequencies(decoder.rope_theta, rotary_dim(model, decoder), decoder.rope_scaling)[0].to(device)
    return Kept(
        cache_format,
        specs,
        sparse(base, frequencies, as_decoded=as_decoded),
        _window(cache_format, block_size, max_step_tokens),
    )


def reads_in_part(model: Model, cache_format: CacheFormat) -> bool:
    """Whether the model can be run with the format, as far as reading in part goes: yes for one that reads it whole."""
    if cache_format.sparse is None:
        return True
    try:
        layer_specs(model, cache_format)
        _require_plain_attention(model, runnable_decoder(model), cache_format.sparse.way)
    except KvtoolError:
        return False
    return True


def _window(cache_format: CacheFormat, block_size: int, max_step_tokens: int | None) -> SinkWindow | None:
    way = cache_format.sparse
    if way is None or way.way != "streaming":
        return None
    if max_step_tokens is not None and max_step_tokens < way.step_tokens:
        raise KvtoolError(
            f"a streaming cache computes {way.step_tokens} tokens of a prompt a step, not {max_step_tokens}"
        )
    return SinkWindow(window_pages=way.pages - 1, step_tokens=way.step_tokens)


def _require_plain_attention(model: Model, decoder: Decoder, way: str) -> None:
    """Raises KvtoolError where scores are more than products of turned queries and keys."""
    if decoder.attention_softcap or decoder.attention_sinks:
        raise KvtoolError(f"a {way} cache does not run {model.id}, whose attention has a softcap or sinks of its own")
    turns_all = decoder.position_offset is None and all(decoder.rotates(i) for i in range(model.num_layers))
    if way == "streaming" and not turns_all:
        raise KvtoolError(f"a streaming cache does not run {model.id}, which has layers without rotary positions")
