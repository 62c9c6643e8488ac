"""The caches that llama.cpp allocates at its start: cells for tokens, rows for states, on the device of each layer.

Read from llama.cpp as llama-cpp-python 0.3.36 carries it (src/llama-model.cpp create_memory, llama-kv-cache*.cpp,
llama-memory-recurrent.cpp). Memory does not decide the cache: it is allocated for -c, or the start fails.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from kvtool.catalog.model import (
    ChunkedAttention,
    CompressedAttention,
    FullAttention,
    LatentAttention,
    Model,
    RecurrentLayer,
    SharedAttention,
    SlidingAttention,
)
from kvtool.sizing.engines.llama_cpp.start import (
    OWN_ENGINE_WINDOW_TOKENS,
    LlamaCppFlags,
    Start,
    flags_of,
    llama_cpp_start,
    ollama_start,
)
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.versions import parse_release
from kvtool.sizing.formats import CacheFormat, parse_cache_format
from kvtool.sizing.specs.recurrent import conv_elements, recurrent_elements
from kvtool.system.errors import KvtoolError

NAMES = ("llama.cpp", "ollama")  # the engines that allocate so
VERSION = "of llama-cpp-python 0.3.36"
STATES = "RS"  # as the log calls the cache of recurrent states
TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
_TYPE_FORMATS = {"f32": "fp32", "f16": "fp16"}
FLOAT_BYTES = 4  # states are fp32 whatever the cache's types
# Architectures, by HF's name, whose windows or chunks llama.cpp knows; the others' sliding layers keep every token.
WINDOWED = frozenset(
    (
        *(
            "afmoe",
            "cohere2",
            "cohere2_moe",
            "exaone4",
            "exaone_moe",
            "gemma2",
            "gemma3",
            "gemma3_text",
            "gemma3n_text",
        ),
        *(
            "gemma4_text",
            "gemma4_unified_text",
            "gpt_oss",
            "laguna",
            "lfm2",
            "llama4_text",
            "mimo_v2",
            "mimo_v2_flash",
            "olmo3",
            "plamo3",
        ),
        *("smallthinker", "step3p5", "step3p7"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What one layer stores in a cell (bytes of K and of V) or a sequence (its state), and the GPU it is on (None:
    the CPU)."""

    index: int
    gpu: int | None
    k_bytes: int = 0
    v_bytes: int = 0
    conv_bytes: int = 0
    state_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Layers of one kind, `rows` cells or states of each; `name` as llama.cpp's log calls it."""

    name: str
    rows: int
    layers: tuple[Layer, ...]
    window: int | None = None

    @property
    def k_bytes(self) -> int:
        """K, or the convolution's inputs of states."""
        return self.rows * sum(layer.k_bytes + layer.conv_bytes for layer in self.layers)

    @property
    def v_bytes(self) -> int:
        """V, or the states."""
        return self.rows * sum(layer.v_bytes + layer.state_bytes for layer in self.layers)

    @property
    def total_bytes(self) -> int:
        return self.k_bytes + self.v_bytes

    def bytes_on(self, gpu: int | None) -> int:
        """Of the layers on one device."""
        on_it = [layer for layer in self.layers if layer.gpu == gpu]
        return self.rows * sum(x.k_bytes + x.v_bytes + x.conv_bytes + x.state_bytes for x in on_it)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppPlan:
    """`caches` are empty where the start is refused, or kvtool does not know what it allocates: `refusal` says why."""

    model: Model
    flags: LlamaCppFlags
    start: Start
    caches: tuple[Cache, ...] = ()
    refusal: str | None = None

    @property
    def total_bytes(self) -> int:
        return sum(cache.total_bytes for cache in self.caches)

    def bytes_on(self, gpu: int | None) -> int:
        """On one GPU, or on the CPU (None)."""
        return sum(cache.bytes_on(gpu) for cache in self.caches)


def plan_of(model: Model, options: EngineOptions) -> LlamaCppPlan:
    """The plan of a start of llama.cpp or Ollama, with --max-model-len as -c (else what the model was made for).

    Raises KvtoolError where neither is known.
    """
    context = options.max_model_len or model.max_position_embeddings
    if context is None:
        raise KvtoolError(f"how long a context {model.id} takes is not known: give --max-model-len")
    flags = flags_of(options)
    if options.name == "ollama":
        version = None if options.version is None else parse_release(options.version)
        return plan(model, flags, ollama_start(flags, context, version))
    return plan(model, flags, llama_cpp_start(flags, context))


def plan(model: Model, flags: LlamaCppFlags, start: Start) -> LlamaCppPlan:
    """Plan one start. Raises KvtoolError for a type that a cache cannot have; what llama.cpp refuses is a refusal."""
    key, value = (_cache_type(name, flag) for name, flag in ((flags.cache_type_k, "k"), (flags.cache_type_v, "v")))
    refusal = _refusal(model, flags)
    if refusal is not None:
        return LlamaCppPlan(model=model, flags=flags, start=start, refusal=refusal)
    try:
        caches = tuple(_caches(model, flags, start, key, value))
    except KvtoolError as error:  # heads that a quantised type's blocks do not divide
        return LlamaCppPlan(model=model, flags=flags, start=start, refusal=str(error))
    return LlamaCppPlan(model=model, flags=flags, start=start, caches=caches)


def capacity(plan: LlamaCppPlan, tokens: int) -> float:
    """Sequences of `tokens` tokens that run at once: those that a stream has cells for, as many as there are slots."""
    if plan.refusal is not None or tokens > plan.start.context:
        return 0.0
    return min(float(plan.start.slots), plan.start.streams * (plan.start.cells / tokens))


def _cache_type(name: str, which: str) -> CacheFormat:
    wanted = name.strip().lower()
    wanted = {"auto": "f16", "fp16": "f16", "fp32": "f32"}.get(wanted, wanted)
    if wanted not in TYPES:
        raise KvtoolError(f"--cache-type-{which} {name!r} is not one of llama.cpp's: {', '.join(TYPES)}")
    return parse_cache_format(_TYPE_FORMATS.get(wanted, wanted))


def _refusal(model: Model, flags: LlamaCppFlags) -> str | None:
    types = (flags.cache_type_k.lower(), flags.cache_type_v.lower())
    quantised_value = types[1].startswith(("q", "iq"))
    if quantised_value and flags.flash_attn == "off":
        return "quantized V cache requires flash_attn to be enabled: --flash-attn on, or --cache-type-v f16"
    if any(isinstance(layer.cache, LatentAttention) for layer in model.layers) and types[0] != types[1]:
        return f"MLA has one cache: --cache-type-k {types[0]} and --cache-type-v {types[1]} must be the same"
    if any(isinstance(layer.cache, CompressedAttention) for layer in model.layers):
        return f"what llama.cpp keeps for the compressed attention of {model.id} is not modelled"
    return None


def _caches(model: Model, flags: LlamaCppFlags, start: Start, key: CacheFormat, value: CacheFormat) -> Iterator[Cache]:
    """In the order that llama.cpp creates them: cells that see everything, windows, indexer keys, states."""
    rows = _Rows(model=model, flags=flags, key=key, value=value)
    everything = [row for index, row in rows.cells() if rows.window(index) is None]
    if everything:
        yield Cache(name="KV", rows=start.cells * start.streams, layers=tuple(everything))
    windows = {rows.window(index) for index, _ in rows.cells()} - {None}
    for window in sorted(window for window in windows if window is not None):
        cells = start.window_cells(window, OWN_ENGINE_WINDOW_TOKENS.get(model.architecture or ""))
        layers = tuple(row for index, row in rows.cells() if rows.window(index) == window)
        yield Cache(name="SWA KV", rows=cells * start.streams, layers=layers, window=window)
    if indexers := tuple(rows.indexers()):
        yield Cache(name="indexer KV", rows=start.cells * start.streams, layers=indexers)
    if states := tuple(rows.states()):
        yield Cache(name=STATES, rows=start.slots, layers=states)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """What the layers of a model store in a cell or a sequence."""

    model: Model
    flags: LlamaCppFlags
    key: CacheFormat
    value: CacheFormat

    def cells(self) -> Iterator[tuple[int, Layer]]:
        """Layers with K, and V but for MLA, by their index."""
        padded = self._padded_value()
        for index, layer in enumerate(self.model.layers):
            match layer.cache:
                case LatentAttention() as mla:
                    k_bytes = _row_bytes(self.key, mla.kv_lora_rank + mla.qk_rope_head_dim)
                    yield index, Layer(index=index, gpu=self._gpu(index), k_bytes=k_bytes)
                case FullAttention() as heads:
                    value_elements = max(heads.kv_heads * heads.v_head_dim, padded)
                    yield (
                        index,
                        Layer(
                            index=index,
                            gpu=self._gpu(index),
                            k_bytes=_row_bytes(self.key, heads.kv_heads * heads.k_head_dim),
                            v_bytes=_row_bytes(self.value, value_elements),
                        ),
                    )
                case SharedAttention():
                    continue

    def window(self, index: int) -> int | None:
        """Of a layer whose window llama.cpp knows."""
        cache = self.model.layers[index].cache
        known = self.model.architecture in WINDOWED
        return cache.window if known and isinstance(cache, SlidingAttention | ChunkedAttention) else None

    def indexers(self) -> Iterator[Layer]:
        """One key a cell in K's type. Beside K and V heads (MiniMax-M3) its cache has a V of one head too."""
        for index, layer in enumerate(self.model.layers):
            if layer.indexer is None:
                continue
            beside = layer.cache.v_head_dim if isinstance(layer.cache, FullAttention) else 0
            yield Layer(
                index=index,
                gpu=self._gpu(index),
                k_bytes=_row_bytes(self.key, layer.indexer.head_dim),
                v_bytes=_row_bytes(self.value, beside),
            )

    def states(self) -> Iterator[Layer]:
        for index, layer in enumerate(self.model.layers):
            if isinstance(layer.cache, RecurrentLayer):
                yield Layer(
                    index=index,
                    gpu=self._gpu(index),
                    conv_bytes=conv_elements(layer.cache) * FLOAT_BYTES,
                    state_bytes=recurrent_elements(layer.cache) * FLOAT_BYTES,
                )

    def _padded_value(self) -> int:
        """Without flash attention V is transposed, and every layer's is as wide as the widest."""
        if self.flags.flash_attn != "off":
            return 0
        heads = (layer.cache for layer in self.model.layers if isinstance(layer.cache, FullAttention))
        return max((cache.kv_heads * cache.v_head_dim for cache in heads), default=0)

    def _gpu(self, index: int) -> int | None:
        return device_of(index, self.model.num_layers, self.flags)


def _row_bytes(cache_format: CacheFormat, elements: int) -> int:
    """A row of all heads, in whole blocks of its type. Raises KvtoolError where they do not fill."""
    if not elements:
        return 0
    return cache_format.head_bytes(elements, 0)


def device_of(layer: int, num_layers: int, flags: LlamaCppFlags) -> int | None:
    """The GPU of a layer: the last --n-gpu-layers of the layers and the output are dealt out by --tensor-split."""
    offloaded = num_layers + 1 if flags.n_gpu_layers is None else min(flags.n_gpu_layers, num_layers + 1)
    first = max(num_layers + 1 - offloaded, 0)
    if layer < first or offloaded == 0:
        return None
    total = sum(flags.tensor_split)
    ends = [end / total for end in accumulate(flags.tensor_split)]
    return min(bisect_right(ends, (layer - first) / offloaded), len(ends) - 1)
