"""The obvious torch twin of every kernel, as `interface.Kernels` promises them."""

from kvtool.kernels.plain import likeliest, nucleus, record
from kvtool.kernels.reference import fused
from kvtool.kernels.reference.attention import decode, gather, prefill, store
from kvtool.kernels.reference.step import (
    add_rms_norm,
    experts,
    gated,
    linear,
    place,
    prepare,
    rms_norm,
    rotate,
    split_latent,
    split_qkv,
    weight_copies,
)

__all__ = [
    "add_rms_norm",
    "decode",
    "experts",
    "fused",
    "gated",
    "gather",
    "likeliest",
    "linear",
    "nucleus",
    "place",
    "prefill",
    "prepare",
    "record",
    "rms_norm",
    "rotate",
    "split_latent",
    "split_qkv",
    "store",
    "tile_tokens",
    "weight_copies",
]

tile_tokens = 1
