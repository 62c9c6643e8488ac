"""The layouts that the inverse question tries where the number of GPUs is left open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kvtool.catalog.model import LatentAttention, Model, SharedAttention
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.plan import make_plan
from kvtool.system.errors import KvtoolError

GPU_COUNTS = (1, 2, 4, 8, 16)


def layouts_of(model: Model, options: SizeOptions, *, open_pp: bool) -> list[Parallel]:
    """For each number of GPUs the widest tensor parallelism that the model takes in a node, and stages beyond it; where
    every tp rank would hold the same latent cache, also with its tokens or its users shared out.

    Raises KvtoolError where the model takes none of them.
    """
    found: list[Parallel] = []
    refusal: KvtoolError | None = None
    for gpus in GPU_COUNTS:
        try:
            layout = _layout(model, options, gpus, open_pp)
        except KvtoolError as error:
            refusal = refusal or error
            continue
        found += [layout, *_without_copies(model, layout)]
    if not found and refusal is not None:
        raise refusal
    return found


def _layout(model: Model, options: SizeOptions, gpus: int, open_pp: bool) -> Parallel:
    """The layout of `gpus` GPUs a replica and stage. Raises the KvtoolError of the widest where none is possible."""
    given, refusal = options.parallel, KvtoolError(f"no layout of {model.id} on {gpus} GPUs")
    for tp in (count for count in (8, 4, 2, 1) if count <= gpus):
        pp = gpus // tp if open_pp else given.pp
        if not open_pp and tp != gpus:
            break
        if open_pp and pp > 1 and any(isinstance(layer.cache, SharedAttention) for layer in model.layers):
            break  # vLLM refuses pipeline stages for layers that read another layer's cache
        try:
            layout = replace(given, tp=tp, pp=pp)
            make_plan(model, replace(options, parallel=layout, lengths=None, engine=None))
        except KvtoolError as error:
            refusal = error
            continue
        return layout
    raise refusal


def _without_copies(model: Model, layout: Parallel) -> Iterator[Parallel]:
    """Of MLA, which tp repeats: decode context parallelism, and SGLang's replicas of the attention."""
    plain = layout.dp == layout.dcp == 1 and not layout.dp_attention
    if layout.tp > 1 and plain and all(isinstance(layer.cache, LatentAttention) for layer in model.layers):
        yield replace(layout, dcp=layout.tp)
        yield replace(layout, dp=layout.tp, dp_attention=True)
