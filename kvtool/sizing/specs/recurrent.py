"""Elements of the constant state of recurrent layers on one tensor-parallel rank, as vLLM's mamba_utils shapes them.

The convolution keeps the last kernel - 1 inputs of each of its channels, and one more for each drafted token.
"""

from __future__ import annotations

from kvtool.catalog.model import (
    GatedDeltaNet,
    KimiDeltaAttention,
    LightningAttention,
    Mamba1,
    Mamba2,
    OtherState,
    RecurrentLayer,
    ShortConvolution,
)
from kvtool.system.errors import KvtoolError


def conv_elements(layer: RecurrentLayer, tp: int = 1, drafted: int = 0) -> int:
    """Elements of the convolution's state on one rank. Raises KvtoolError where the channels cannot be split."""
    match layer:
        case Mamba1():
            channels = layer.inner_dim
        case Mamba2():
            # A rank needs whole groups: where tp does not divide them they are repeated, one for each rank.
            groups = layer.groups if layer.groups % tp == 0 else tp
            channels = layer.heads * layer.head_dim + 2 * groups * layer.state_dim
        case GatedDeltaNet():
            channels = 2 * layer.key_heads * layer.key_head_dim + layer.value_heads * layer.value_head_dim
        case KimiDeltaAttention():
            channels = 3 * layer.heads * layer.head_dim
        case ShortConvolution():
            channels = layer.dim
        case LightningAttention():
            return 0
        case OtherState():
            return _shard(layer.conv_elements, tp, "convolution elements")
    inputs = layer.conv_kernel - 1 + (0 if isinstance(layer, Mamba1) else drafted)  # vLLM's Mamba-1 does not draft
    return _shard(channels, tp, "convolution channels") * inputs


def recurrent_elements(layer: RecurrentLayer, tp: int = 1) -> int:
    """Elements of the recurrent state on one rank. Raises KvtoolError where the heads cannot be split."""
    match layer:
        case Mamba1():
            return _shard(layer.inner_dim, tp, "state channels") * layer.state_dim
        case Mamba2():
            return _shard(layer.heads, tp, "state heads") * layer.head_dim * layer.state_dim
        case GatedDeltaNet():
            return _shard(layer.value_heads, tp, "state heads") * layer.value_head_dim * layer.key_head_dim
        case KimiDeltaAttention() | LightningAttention():
            return _shard(layer.heads, tp, "state heads") * layer.head_dim * layer.head_dim
        case ShortConvolution():
            return 0
        case OtherState():
            return _shard(layer.recurrent_elements, tp, "state elements")


def _shard(count: int, tp: int, what: str) -> int:
    if count % tp:
        raise KvtoolError(f"tp {tp} does not divide the {count} {what}")
    return count // tp
