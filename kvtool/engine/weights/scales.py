"""The scales of a calibrated cache: they reach the largest K and V of each layer on a text that is read beforehand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kvtool.engine.batch import sequence_batch
from kvtool.engine.pool import Amax, layer_pages
from kvtool.engine.text import ALICE, find_tokenizer, shipped_text
from kvtool.kernels.packed.rotation import rotate_heads
from kvtool.kernels.pages import Pages
from kvtool.sizing.formats import parse_cache_format
from kvtool.sizing.specs import HeadsSpec
from kvtool.system.errors import KvtoolError
from kvtool.units import ceil_div

if TYPE_CHECKING:
    from kvtool.engine.loaded import LoadedModel

CALIBRATED_TOKENS = 256
CHARACTERS = 16  # of a token, at most, on average


def measured_amax(loaded: LoadedModel) -> tuple[Amax, ...]:
    """By layer of the run's own cache. Raises KvtoolError for latents, and where several processes share the heads."""
    name = loaded.cache_format.name
    if loaded.part.ranks > 1:
        raise KvtoolError(f"a {name} cache measures its scales in one process: leave the ranks out")
    if not all(isinstance(spec, HeadsSpec) for spec in loaded.specs):
        raise KvtoolError(f"a {name} cache has scales of K and V heads: the latents of {loaded.model.id} are none")
    whole, token_ids, block_size = loaded.keeping(parse_cache_format(loaded.dtype)), _token_ids(loaded), 16
    pages = ceil_div(len(token_ids), block_size)
    layers = [layer_pages(spec, pages, block_size, loaded.device) for spec in whole.specs]
    batch = sequence_batch(token_ids, 0, len(token_ids), block_size, loaded.device)
    loaded.transformer(batch, layers, whole.kernels)
    return tuple(_amax(each, rotated=loaded.cache_format.rotated) for each in layers)


def calibration_text(loaded: LoadedModel) -> str:
    """What is read, in words."""
    return "random ids" if loaded.weights.even_routing else ALICE


def _token_ids(loaded: LoadedModel) -> list[int]:
    """The beginning of the text that comes with kvtool; of random weights, which no text means anything to, any."""
    count = min(CALIBRATED_TOKENS, loaded.max_positions)
    if loaded.weights.even_routing:
        generator = torch.Generator().manual_seed(loaded.config.seed)
        return torch.randint(loaded.vocab_size, (count,), generator=generator).tolist()
    tokenizer = find_tokenizer(loaded.config.weights)
    if tokenizer is None:
        raise KvtoolError(
            f"no tokenizer.json beside the weights ({loaded.config.weights}): a {loaded.cache_format.name} cache "
            "measures its scales on a text"
        )
    found = tokenizer.encode(shipped_text().decode()[: count * CHARACTERS])[:count]
    if (highest := max(found)) >= loaded.vocab_size:
        raise KvtoolError(f"the tokenizer gives token {highest}, outside the vocabulary of {loaded.vocab_size}")
    return found


def _amax(pages: Pages, *, rotated: bool) -> Amax:
    """Of what the pages hold, as it would be stored; slots that nobody wrote are 0."""
    assert pages.v is not None
    k, v = (float((rotate_heads(x) if rotated else x).abs().max()) for x in (pages.k, pages.v))
    return k, v
