"""What SGLang leaves for caches on a card: --mem-fraction-static and its default, and the chunk of a prefill.

Truth: sglang 0.5.23, srt/arg_groups/memory_hook.py and srt/mem_cache/kv_cache_configurator.py.
"""

from __future__ import annotations

import math

from kvtool.catalog.gpus import Gpu
from kvtool.catalog.model import Model
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.sglang.backend import is_mla
from kvtool.sizing.engines.sglang.versions import rules_of
from kvtool.sizing.fit import Budget
from kvtool.system.errors import KvtoolError
from kvtool.units import MIB

# Up to this many MiB of memory: (chunked prefill size, largest decode graph with tp below 4, with more).
_CARDS = (
    (20 * 1024, 2048, 8, 8),
    (35 * 1024, 4096, 48, 160),
    (60 * 1024, 4096, 32, 160),
    (160 * 1024, 8192, 256, 512),
)
_LARGEST_CARD = (16384, 512, 512)
_NO_CARD = (4096, 160, 160)
# What a start takes of a card before it loads weights: fitted to the 22.93 of 23.52 GiB that a public log of two
# RTX 4090s has left.
START_BYTES = 614 * MIB
MLA_PREFILL_GRAPHS_MIB = 1.5 * 1024
PREFILL_GRAPH_MIB = 8
# Numbers of tokens that a prefill graph is captured for: (first, step, last), then every 512 up to the chunk.
_GRAPH_STEPS = ((4, 4, 32), (48, 16, 256), (288, 32, 512), (576, 64, 1024), (1280, 256, 4096))


def chunked_prefill_size(options: EngineOptions) -> int:
    """--chunked-prefill-size, or SGLang's default for the card."""
    return _defaults(options)[0] if options.chunked_prefill_size is None else options.chunked_prefill_size


def mem_fraction_static(options: EngineOptions, gpu: Gpu, *, mla: bool) -> float:
    """The part of the card that weights and caches may take: the flag, or SGLang's guess of what the rest needs.

    A vision-language model gets less than this, by the size of its tower.
    """
    given = options.mem_fraction_static
    if given is not None:
        if not 0 < given <= 1:
            raise KvtoolError(f"--mem-fraction-static {given} must be above 0 and at most 1")
        return given
    memory_mib = gpu.memory_bytes / MIB
    return round((memory_mib - _reserved_mib(options, gpu, memory_mib, mla=mla)) / memory_mib, 3)


def estimate_pool_bytes(model: Model, options: EngineOptions, memory: Budget) -> int | None:
    """What one GPU has for all caches: its memory after start (less what the runtime takes) and weights, less the part
    that --mem-fraction-static leaves to activations and graphs; as measured, where it was. Negative where it does not
    fit, None where the weights are not known.
    """
    if memory.measured_pool_bytes is not None:
        return memory.measured_pool_bytes
    if options.gpu is None or memory.weights_bytes is None:
        return None
    before_load = memory.memory_bytes - START_BYTES
    slack = before_load * (1 - mem_fraction_static(options, options.gpu, mla=is_mla(model)))
    return math.floor(before_load - memory.weights_bytes - slack)


def _defaults(options: EngineOptions) -> tuple[int, int]:
    """(chunked prefill size, sequences of the largest decode graph) of the card."""
    chunk, few, many = _NO_CARD if options.gpu is None else _by_memory(options.gpu.memory_bytes / MIB)
    graph = few if options.parallel.tp < 4 else many
    return chunk, min(graph, options.max_running_requests or graph)


def _by_memory(memory_mib: float) -> tuple[int, int, int]:
    return next((tuple_[1:] for tuple_ in _CARDS if memory_mib < tuple_[0]), _LARGEST_CARD)


def _reserved_mib(options: EngineOptions, gpu: Gpu, memory_mib: float, *, mla: bool) -> float:
    chunk, graph = chunked_prefill_size(options), _defaults(options)[1]
    reserved = 512 + max(chunk, 2048) * 1.5 + options.parallel.tp * options.parallel.pp / 8 * 1024 + 2 * graph
    if options.parallel.dp_attention and options.parallel.dp > 1:
        reserved += graph * options.parallel.dp * (4.5 if graph > 300 else 3)
    if gpu.vendor == "NVIDIA" and options.parallel.pp == 1 and rules_of(options).prefill_graphs:
        reserved += MLA_PREFILL_GRAPHS_MIB if mla else PREFILL_GRAPH_MIB * _prefill_graphs(chunk)
    return max(reserved, 10 * 1024) if memory_mib > 60 * 1024 else reserved


def _prefill_graphs(chunk: int) -> int:
    sizes = [size for first, step, last in _GRAPH_STEPS for size in range(first, last + 1, step)]
    sizes += range(4608, chunk + 1, 512)
    return sum(size <= chunk for size in sizes)
