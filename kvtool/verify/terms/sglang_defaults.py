"""The defaults that an SGLang start may have had where its log tells neither card nor release: each with its words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kvtool.catalog.gpus import find_gpu
from kvtool.sizing.engines.sglang.backend import is_sparse_mla
from kvtool.sizing.engines.sglang.versions import HISTORY
from kvtool.verify.inputs import Started

_CARDS = ("H100-SXM-80GB", "B200-SXM-180GB")  # SGLang keeps sparse MLA in bf16 on the first, in fp8 on the second


def default_starts(started: Started) -> Iterator[tuple[str, Started]]:
    """The start itself, without words; then as other cards and releases have it, for models whose rows they decide."""
    yield "", started
    options = started.options
    if not is_sparse_mla(started.model) or "kv_cache_dtype" in started.inputs:
        return
    known = options.gpu or started.kernels
    cards = (known,) if known else tuple(find_gpu(name) for name in _CARDS)
    versions = (options.version,) if options.version else (HISTORY.modelled, HISTORY.first)
    for card in cards:
        for version in versions:
            other = replace(options, gpu=card, version=version)
            yield f"SGLang {version} on {card.name}", replace(started, options=other)
