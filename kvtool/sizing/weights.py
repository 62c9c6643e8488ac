"""Bytes of a model's weights: stored, on each GPU, and read by a decode step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from kvtool.catalog.headers import CheckpointHeader
from kvtool.catalog.model import Model
from kvtool.catalog.quantised_parts import DENSE, EXPERTS, MIXERS
from kvtool.sizing.dtypes import AUTO, FLOAT_BYTES, WEIGHT_BITS, canonical_dtype, parse_weight_dtype
from kvtool.sizing.parallel import Parallel, pipeline_stages
from kvtool.sizing.params import ParamCount, count_params, experts_stored
from kvtool.sizing.traffic import experts_touched
from kvtool.units import ceil_div

# What safetensors and GGUF files call the dtypes that kvtool names otherwise.
_FILE_DTYPES = {"f32": "fp32", "f16": "fp16", "f8_e4m3": "fp8", "f8_e5m2": "fp8", "i8": "int8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """Bits of a parameter: of dense layers and what else there is, of embedding and output head (`outer_bits`, which
    quantised checkpoints keep at the model's dtype), of attention and recurrence, and of routed experts.
    """

    name: str
    bits: float
    outer_bits: float
    mixer_bits: float
    expert_bits: float

    @property
    def uniform(self) -> bool:
        """Whether all layers are stored alike."""
        return self.bits == self.mixer_bits == self.expert_bits


def weight_format(model: Model, dtype: str = AUTO) -> WeightFormat:
    """`auto` is how the checkpoint stores its weights, bf16 where nothing says so. Raises KvtoolError."""
    if dtype != AUTO:
        name = parse_weight_dtype(dtype)
        return _alike(name, WEIGHT_BITS[name], WEIGHT_BITS[name])
    name = canonical_dtype(model.dtype or "bf16")
    bits = float(WEIGHT_BITS.get(name, 16))
    stored = model.quantisation
    if stored is None or stored.bits_per_weight is None:
        return _alike(stored.method if stored else name, bits, bits)
    own = stored.bits_per_weight
    return WeightFormat(
        name=stored.method,
        bits=bits if DENSE in stored.whole else own,
        outer_bits=bits,
        mixer_bits=bits if MIXERS in stored.whole else own,
        expert_bits=bits if EXPERTS in stored.whole else stored.expert_bits or own,
    )


def _alike(name: str, bits: float, outer_bits: float) -> WeightFormat:
    return WeightFormat(name=name, bits=bits, outer_bits=outer_bits, mixer_bits=bits, expert_bits=bits)


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

    def bytes_per_gpu(self, parallel: Parallel) -> int | None:
        """The part of a GPU of the fullest stage: attention over the ranks of a sequence, routed experts over
        max(tp, ep), all else over tp. What is stored beyond the counted parameters is taken as spread over all stages.
        """
        if self.stored_bytes is None or (self.params is None and parallel.dp_attention):
            return None
        if self.params is None:
            return ceil_div(self.stored_bytes, parallel.tp * parallel.pp)
        extra = self.stored_bytes - _counted_bits(self.params, self.format) / 8
        fullest = max(_stage_bits(self, self.params, parallel))
        return math.ceil(fullest / 8 + extra / (parallel.tp * parallel.pp))

    def read_bytes_per_step(self, batch_size: int, parallel: Parallel) -> int | None:
        """What one rank of each pipeline stage reads for a step of `batch_size` sequences, all stages together."""
        if self.params is None:
            return self._read_without_split(parallel)
        head = self.params.embedding if self.params.tied else self.params.head
        mixers = self.params.mixers
        read = mixers * self.format.mixer_bits / parallel.attention_tp
        dense = (self.params.dense_read - head - mixers) * self.format.bits
        read += (dense + head * self.format.outer_bits) / parallel.tp
        if self.model.moe is not None:
            # Expert parallelism wider than tp brings the tokens of several replicas to the same experts.
            sequences = parallel.sequences_of_ranks(batch_size) * max(1, parallel.ep // parallel.tp)
            touched = experts_touched(self.model.moe, sequences) / self.model.moe.num_experts
            read += self.params.experts * self.format.expert_bits * touched / parallel.expert_shards
        return round(read / 8)

    def _read_without_split(self, parallel: Parallel) -> int | None:
        """Everything stored, for a dense model; None for experts, of which a step reads a part that is not known."""
        if self.stored_bytes is None or self.model.moe is not None:
            return None
        return ceil_div(self.stored_bytes, parallel.tp)


def _stage_bits(weights: Weights, params: ParamCount, parallel: Parallel) -> Iterator[float]:
    """Bits that one rank of each pipeline stage holds: the embedding in the first, the output head in the last."""
    stored = weights.format
    outside = params.layers - sum(layer.mixer + layer.rest for layer in params.by_layer)
    stages = pipeline_stages(params.by_layer, parallel.pp)
    for index, stage in enumerate(stages):
        held = sum(
            layer.mixer * stored.mixer_bits / parallel.attention_tp
            + layer.rest * stored.bits / parallel.tp
            + layer.experts * stored.expert_bits / parallel.expert_shards
            for layer in stage
        )
        outer = params.embedding / parallel.attention_tp if index == 0 else 0.0
        if index == len(stages) - 1:
            held += outside * stored.bits / parallel.tp
            # A tied head is the embedding itself, of which a last stage of its own needs another copy.
            outer += (params.embedding if params.tied and index else params.head) / parallel.tp
        yield held + outer * stored.outer_bits


def _counted_bits(params: ParamCount, stored: WeightFormat) -> float:
    """Bits of all parameters that are counted, each part in its own."""
    rest = params.layers - params.mixers
    layers = params.mixers * stored.mixer_bits + rest * stored.bits + params.experts * stored.expert_bits
    return layers + (params.embedding + params.head) * stored.outer_bits


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
    if dtype == AUTO and model.quantisation is not None and model.quantisation.bits_per_weight is None:
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
        stored_bytes=math.ceil((counted + beyond * stored.bits) / 8),
        source=f"{total:,} {origin} in {stored.name}",
    )


def _weigh_experts_apart(model: Model, stored: WeightFormat, total: int) -> Weights:
    """For a family of which no more than the experts are known: embedding and head as they are, all else in `bits`."""
    experts = experts_stored(model)
    if experts is None or model.vocab_size is None or stored.bits != stored.mixer_bits:
        source = f"unknown: {stored.name} stores parts in several ways, and how large they are is not known"
        return Weights(model=model, params=None, format=stored, stored_bytes=None, source=source)
    outer = (1 if model.tie_word_embeddings else 2) * model.vocab_size * model.hidden_size
    bits = experts * stored.expert_bits + outer * stored.outer_bits + (total - experts - outer) * stored.bits
    return Weights(
        model=model,
        params=None,
        format=stored,
        stored_bytes=math.ceil(bits / 8),
        source=f"{total:,} published parameters in {stored.name}, experts in {stored.expert_bits:g} bits",
    )


def _stored_format(checkpoint: CheckpointHeader, params: ParamCount | None) -> WeightFormat:
    """The dtype that takes most of the bytes; quantised ones have the bits that they average over the parameters."""
    taken: Counter[str] = Counter()
    for tensor in checkpoint.tensors:
        taken[tensor.dtype.lower()] += tensor.size_bytes
    name = _FILE_DTYPES.get(taken.most_common(1)[0][0], taken.most_common(1)[0][0])
    bits = float(WEIGHT_BITS.get(name, 16))
    if name not in FLOAT_BYTES and params is not None:
        bits = checkpoint.weights_bytes * 8 / params.total
    return _alike(name, bits, bits)
