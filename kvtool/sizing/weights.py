"""Bytes of a model's weights: stored, on each GPU, and read by a decode step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from kvtool.catalog.headers import CheckpointHeader
from kvtool.catalog.model import LayerBits, Model
from kvtool.catalog.quantised.parts import BEYOND, DENSE, EXPERTS, MIXERS
from kvtool.sizing.dtypes import AUTO, FLOAT_BYTES, WEIGHT_BITS, canonical_dtype, parse_weight_dtype
from kvtool.sizing.parallel import Parallel, pipeline_stages
from kvtool.sizing.params import LayerParams, ParamCount, count_params, experts_stored
from kvtool.sizing.speed.traffic import experts_touched
from kvtool.units import ceil_div

# What safetensors and GGUF files call the dtypes that kvtool names otherwise.
_FILE_DTYPES = {"f32": "fp32", "f16": "fp16", "f8_e4m3": "fp8", "f8_e5m2": "fp8", "i8": "int8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """Bits of a parameter: of dense layers and what else there is, of the embedding and of an output head of its own
    (which most quantised checkpoints keep at the model's dtype), of attention and recurrence, of routed experts, and of
    what is stored beyond the counted parameters (towers, draft layers). `layers` says it of each where they differ.
    """

    name: str
    bits: float
    embedding_bits: float
    head_bits: float
    mixer_bits: float
    expert_bits: float
    beyond_bits: float
    layers: tuple[LayerBits, ...] = ()

    @property
    def uniform(self) -> bool:
        """Whether all layers are stored alike, embedding and head too."""
        inner = self.bits == self.mixer_bits == self.expert_bits and not self.layers
        return inner and self.bits == self.embedding_bits == self.head_bits

    def outer(self, params: ParamCount) -> float:
        """Bits of embedding and output head."""
        return params.embedding * self.embedding_bits + params.head * self.head_bits

    def read_head(self, params: ParamCount) -> float:
        """Bits of the output head, which is the embedding where they are tied."""
        return params.embedding * self.embedding_bits if params.tied else params.head * self.head_bits

    def bits_of(self, layer: LayerParams, index: int) -> tuple[float, float, float]:
        """Bits that layer `index` takes for its mixer, for the rest of it, and for its experts."""
        if not self.layers:
            return layer.mixer * self.mixer_bits, layer.rest * self.bits, layer.experts * self.expert_bits
        own = self.layers[index]
        mixer, rest, experts = (bits or self.beyond_bits for bits in (own.mixer, own.dense, own.experts))
        return layer.mixer * mixer, layer.rest * rest, layer.experts * experts


def weight_format(model: Model, dtype: str = AUTO) -> WeightFormat:
    """`auto` is how the checkpoint stores its weights, bf16 where nothing says so; a dtype of 8 or 4 bits is what an
    engine quantises to as it loads, all but embedding, output head and towers. Raises KvtoolError.
    """
    own = float(WEIGHT_BITS.get(canonical_dtype(model.dtype or "bf16"), 16))
    if dtype != AUTO:
        name = parse_weight_dtype(dtype)
        bits = float(WEIGHT_BITS[name])
        return _alike(name, bits, bits if name in FLOAT_BYTES else own)
    stored = model.quantisation
    if stored is None or (stored.bits_per_weight is None and not stored.layers):
        return _alike(stored.method if stored else canonical_dtype(model.dtype or "bf16"), own, own)
    bits = stored.bits_per_weight or own
    return WeightFormat(
        name=stored.method,
        bits=own if DENSE in stored.whole else bits,
        embedding_bits=stored.embedding_bits or own,
        head_bits=stored.head_bits or own,
        mixer_bits=own if MIXERS in stored.whole else stored.mixer_bits or bits,
        expert_bits=own if EXPERTS in stored.whole else stored.expert_bits or bits,
        beyond_bits=own if BEYOND in stored.whole else bits,
        layers=_filled(stored.layers, own),
    )


def _filled(layers: tuple[LayerBits, ...], own: float) -> tuple[LayerBits, ...]:
    """With the model's own bits where a layer keeps its dtype."""

    def bits(value: float | None) -> float:
        return own if value is None else value

    return tuple(
        LayerBits(mixer=bits(layer.mixer), dense=bits(layer.dense), experts=bits(layer.experts)) for layer in layers
    )


def _alike(name: str, bits: float, outer_bits: float) -> WeightFormat:
    return WeightFormat(
        name=name,
        bits=bits,
        embedding_bits=outer_bits,
        head_bits=outer_bits,
        mixer_bits=bits,
        expert_bits=bits,
        beyond_bits=outer_bits,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What a model's weights take. `stored_bytes` is None where nothing says how many parameters there are.

    `params` splits them into what a step reads (None where the shape does not tell); what is stored beyond it
    (multi-token prediction, vision towers) is kept on the GPU but not read.
    """

    model: Model
    params: ParamCount | None
    format: WeightFormat
    stored_bytes: int | None
    source: str
    draft_bytes: int = 0  # of a draft model beside it, which is on the last stage

    @property
    def beyond_bytes(self) -> int | None:
        """Stored beyond the counted parameters: towers, draft layers. None where either is not known."""
        if self.stored_bytes is None or self.params is None:
            return None
        return round(self.stored_bytes - _counted_bits(self.params, self.format) / 8)

    def bytes_per_gpu(self, parallel: Parallel) -> int | None:
        """The part of a GPU of the fullest stage: attention over the ranks of a sequence, routed experts over
        max(tp, ep), all else over tp. What is stored beyond the counted parameters is taken as spread over all stages.
        """
        if self.stored_bytes is None or (self.params is None and parallel.dp_attention):
            return None
        if self.params is None:
            return ceil_div(self.stored_bytes, parallel.tp * parallel.pp) + ceil_div(self.draft_bytes, parallel.tp)
        extra = self.stored_bytes - _counted_bits(self.params, self.format) / 8
        fullest = max(_stage_bits(self, self.params, parallel))
        return math.ceil(fullest / 8 + extra / (parallel.tp * parallel.pp)) + ceil_div(self.draft_bytes, parallel.tp)

    def read_bytes_per_step(self, batch_size: int, parallel: Parallel) -> int | None:
        """What one rank of each pipeline stage reads for a step of `batch_size` sequences, all stages together."""
        if self.params is None:
            return self._read_without_split(parallel)
        mixers, rest, experts = _layer_bits(self.params, self.format)
        read = mixers / parallel.attention_tp + (rest + self.format.read_head(self.params)) / parallel.tp
        if self.model.moe is not None:
            # Expert parallelism wider than tp brings the tokens of several replicas to the same experts.
            sequences = parallel.sequences_of_ranks(batch_size) * max(1, parallel.ep // parallel.tp)
            touched = experts_touched(self.model.moe, sequences) / self.model.moe.num_experts
            read += experts * touched / parallel.expert_shards
        return round(read / 8)

    def _read_without_split(self, parallel: Parallel) -> int | None:
        """Everything stored, for a dense model; None for experts, of which a step reads a part that is not known."""
        if self.stored_bytes is None or self.model.moe is not None:
            return None
        return ceil_div(self.stored_bytes, parallel.tp)


def _stage_bits(weights: Weights, params: ParamCount, parallel: Parallel) -> Iterator[float]:
    """Bits that one rank of each pipeline stage holds: the embedding in the first, the output head in the last."""
    stored = weights.format
    stages = pipeline_stages([*enumerate(params.by_layer)], parallel.pp)
    for number, stage in enumerate(stages):
        taken = [stored.bits_of(layer, index) for index, layer in stage]
        held = sum(
            mixer / parallel.attention_tp + rest / parallel.tp + experts / parallel.expert_shards
            for mixer, rest, experts in taken
        )
        if number == 0:
            held += params.embedding * stored.embedding_bits / parallel.attention_tp
        if number == len(stages) - 1:
            held += _outside(params) * stored.bits / parallel.tp
            # A tied head is the embedding itself, of which a last stage of its own needs another copy.
            held += (stored.read_head(params) if number or not params.tied else 0.0) / parallel.tp
        yield held


def _outside(params: ParamCount) -> int:
    """Parameters that no layer has: the final norm, learned positions."""
    return params.layers - sum(layer.mixer + layer.rest for layer in params.by_layer)


def _layer_bits(params: ParamCount, stored: WeightFormat) -> tuple[float, float, float]:
    """Bits of all mixers, of what else layers and the space around them have, and of all experts."""
    taken = [stored.bits_of(layer, index) for index, layer in enumerate(params.by_layer)]
    mixers, rest, experts = (sum(part) for part in zip(*taken, strict=True)) if taken else (0.0, 0.0, 0.0)
    return mixers, rest + _outside(params) * stored.bits, experts


def _counted_bits(params: ParamCount, stored: WeightFormat) -> float:
    """Bits of all parameters that are counted, each part in its own."""
    return sum(_layer_bits(params, stored)) + stored.outer(params)


def weigh(model: Model, dtype: str = AUTO, *, checkpoint: CheckpointHeader | None = None) -> Weights:
    """Exact from a checkpoint's headers, else the published parameter count, else the shape's. Raises KvtoolError."""
    params = count_params(model)
    if checkpoint is not None and dtype == AUTO:
        return Weights(
            model=model,
            params=params,
            format=_stored_format(checkpoint, params),
            stored_bytes=checkpoint.weights_bytes,
            source="exact: headers of the checkpoint's weights",
        )
    stored = weight_format(model, dtype)
    if dtype == AUTO and model.weights_bytes is not None:
        return Weights(
            model=model,
            params=params,
            format=_averaged(stored, model.weights_bytes, params) if _is_untold(model, params) else stored,
            stored_bytes=model.weights_bytes,
            source="exact: the index or the headers of its checkpoint",
        )
    if dtype == AUTO and _is_untold(model, params):
        source = (
            f"unknown: {stored.name} stores its layers in several ways; a folder with its weights says how many bytes"
        )
        return Weights(model=model, params=None, format=stored, stored_bytes=None, source=source)
    total = model.params_total or (params.total if params else None)
    if total is None:
        layout = f"parameter layout of {model.architecture or 'this shape'}"
        unknown = "vocabulary size" if model.vocab_size is None else layout
        source = f"unknown: the {unknown} is not known"
        return Weights(model=model, params=None, format=stored, stored_bytes=None, source=source)
    if params is None and not stored.uniform:
        return _weigh_experts_apart(model, stored, total)
    counted = _counted_bits(params, stored) if params else 0.0
    beyond = total - (params.total if params else 0)  # published parameters that are not counted, or too many counted
    origin = "published parameters" if model.params_total else "parameters counted from the shape"
    return Weights(
        model=model,
        params=params,
        format=stored,
        stored_bytes=math.ceil((counted + beyond * stored.beyond_bits) / 8),
        source=f"{total:,} {origin} in {stored.name}",
    )


def _is_untold(model: Model, params: ParamCount | None) -> bool:
    """Whether a checkpoint is quantised in a way that does not say how many bytes it has."""
    stored = model.quantisation
    return stored is not None and stored.bits_per_weight is None and (not stored.layers or params is None)


def _weigh_experts_apart(model: Model, stored: WeightFormat, total: int) -> Weights:
    """For a family of which no more than the experts are known: embedding and head as they are, all else in `bits`."""
    alike = stored.bits == stored.mixer_bits == stored.expert_bits
    experts = 0 if alike else experts_stored(model)
    if experts is None or model.vocab_size is None or stored.bits != stored.mixer_bits:
        source = f"unknown: {stored.name} stores parts in several ways, and how large they are is not known"
        return Weights(model=model, params=None, format=stored, stored_bytes=None, source=source)
    embedding = model.vocab_size * model.hidden_size
    head = 0 if model.tie_word_embeddings else embedding
    outer = embedding * stored.embedding_bits + head * stored.head_bits
    bits = experts * stored.expert_bits + outer + (total - experts - embedding - head) * stored.bits
    apart = "" if alike else f", experts in {stored.expert_bits:g} bits"
    return Weights(
        model=model,
        params=None,
        format=stored,
        stored_bytes=math.ceil(bits / 8),
        source=f"{total:,} published parameters in {stored.name}{apart}",
    )


def _stored_format(checkpoint: CheckpointHeader, params: ParamCount | None) -> WeightFormat:
    """The dtype that takes most of the bytes; quantised ones have the bits that they average over the parameters."""
    taken: Counter[str] = Counter()
    for tensor in checkpoint.tensors:
        taken[tensor.dtype.lower()] += tensor.size_bytes
    name = _FILE_DTYPES.get(taken.most_common(1)[0][0], taken.most_common(1)[0][0])
    bits = float(WEIGHT_BITS.get(name, 16))
    stored = _alike(name, bits, bits)
    return stored if name in FLOAT_BYTES else _averaged(stored, checkpoint.weights_bytes, params)


def _averaged(stored: WeightFormat, weights_bytes: int, params: ParamCount | None) -> WeightFormat:
    """The bits that a checkpoint's bytes are on average over the parameters."""
    bits = stored.bits if params is None else weights_bytes * 8 / params.total
    return _alike(stored.name, bits, bits)
