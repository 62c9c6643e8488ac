"""Weights of products: how a decoder asks for them."""

from __future__ import annotations

from kvtool.catalog.decoder import Decoder
from kvtool.engine.weights.source import WeightSource
from kvtool.kernels.interface import Kernels
from kvtool.kernels.plain import CLAMPED, activation
from kvtool.kernels.weights import Gate, Weight


def load_linear(
    kernels: Kernels, weights: WeightSource, name: str, rows: int, columns: int, *, bias: bool = False
) -> Weight:
    """The weight [rows, columns] that is called `name`, with its bias, prepared."""
    weight = weights.tensor(f"{name}.weight", rows, columns)
    added = weights.tensor(f"{name}.bias", rows) if bias else None
    return kernels.prepare(Weight(weight, added, stored=weights.blocks(f"{name}.weight")))


def gate_of(decoder: Decoder) -> Gate:
    """The gate of the decoder's MLPs. Raises KvtoolError for an unknown activation."""
    if decoder.clamped_swiglu is not None:
        return Gate(CLAMPED, decoder.clamped_swiglu.alpha, decoder.clamped_swiglu.limit)
    activation(decoder.activation)
    return Gate(decoder.activation)
