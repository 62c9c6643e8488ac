"""Bytes of a model's weights: stored, on each GPU, and read by a decode step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from kvtool.catalog.checkpoint import has_weights, read_header
from kvtool.catalog.model import Model
from kvtool.sizing.dtypes import AUTO, WEIGHT_BITS, canonical_dtype, parse_weight_dtype
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.params import ParamCount, count_params
from kvtool.sizing.traffic import experts_touched
from kvtool.units import ceil_div


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """Bits of a parameter. Quantised checkpoints keep embedding and output head (`outer_bits`) at the model's dtype."""

    name: str
    bits: float
    outer_bits: float


def weight_format(model: Model, dtype: str = AUTO) -> WeightFormat:
    """`auto` is how the checkpoint stores its weights, bf16 where nothing says so. Raises KvtoolError."""
    if dtype != AUTO:
        name = parse_weight_dtype(dtype)
        return WeightFormat(name=name, bits=WEIGHT_BITS[name], outer_bits=WEIGHT_BITS[name])
    name = canonical_dtype(model.dtype or "bf16")
    bits = float(WEIGHT_BITS.get(name, 16))
    if model.quantisation is not None:
        return WeightFormat(name=model.quantisation.method, bits=model.quantisation.bits_per_weight, outer_bits=bits)
    return WeightFormat(name=name, bits=bits, outer_bits=bits)


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
        """One GPU's part: everything over tp x pp, routed experts over max(tp, ep) x pp."""
        if self.stored_bytes is None:
            return None
        experts = math.ceil(self.params.experts * self.format.bits / 8) if self.params else 0
        rest = self.stored_bytes - min(experts, self.stored_bytes)
        expert_shards = max(parallel.tp, parallel.ep)
        return ceil_div(rest, parallel.tp * parallel.pp) + ceil_div(experts, expert_shards * parallel.pp)

    def read_bytes_per_step(self, batch_size: int, parallel: Parallel) -> int | None:
        """What one rank of each pipeline stage reads for a step of `batch_size` sequences, all stages together."""
        if self.params is None:
            return self._read_without_split(parallel)
        head = self.params.embedding if self.params.tied else self.params.head
        dense_bits = (self.params.dense_read - head) * self.format.bits + head * self.format.outer_bits
        read = dense_bits / 8 / parallel.tp
        if self.model.moe is not None:
            # Expert parallelism wider than tp brings the tokens of several replicas to the same experts.
            sequences = ceil_div(batch_size, parallel.dp) * max(1, parallel.ep // parallel.tp)
            touched = experts_touched(self.model.moe, sequences) / self.model.moe.num_experts
            read += touched * self.params.experts * self.format.bits / 8 / max(parallel.tp, parallel.ep)
        return math.ceil(read)

    def _read_without_split(self, parallel: Parallel) -> int | None:
        """Everything stored, for a dense model; None for experts, of which a step reads a part that is not known."""
        if self.stored_bytes is None or self.model.moe is not None:
            return None
        return ceil_div(self.stored_bytes, parallel.tp)


def checkpoint_bytes(name: str) -> int | None:
    """Bytes of the weights in the folder or file that MODEL names; None where it names none. Raises KvtoolError."""
    path = Path(name)
    if path.suffix in (".gguf", ".safetensors") or (path.is_dir() and has_weights(path)):
        return read_header(path).weights_bytes
    return None


def weigh(model: Model, dtype: str = AUTO, *, checkpoint_bytes: int | None = None) -> Weights:
    """Exact from a checkpoint's headers, else the published parameter count, else the shape's. Raises KvtoolError."""
    params, stored = count_params(model), weight_format(model, dtype)
    if checkpoint_bytes is not None and dtype == AUTO:
        return Weights(
            model=model,
            params=params,
            format=stored,
            stored_bytes=checkpoint_bytes,
            source="exact: headers of the checkpoint's weights",
        )
    outer = params.embedding + params.head if params else 0
    total = model.params_total or (params.total if params else None)
    if total is None:
        known = (
            "vocabulary size"
            if model.vocab_size is None
            else f"parameter layout of {model.architecture or 'its family'}"
        )
        return Weights(
            model=model, params=None, format=stored, stored_bytes=None, source=f"unknown: the {known} is not known"
        )
    origin = "published parameters" if model.params_total else "parameters counted from the shape"
    return Weights(
        model=model,
        params=params,
        format=stored,
        stored_bytes=math.ceil((max(total - outer, 0) * stored.bits + min(outer, total) * stored.outer_bits) / 8),
        source=f"{total:,} {origin} in {stored.name}",
    )
