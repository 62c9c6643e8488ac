"""The kernels on a CPU, as `interface.Kernels` promises them."""

from kvtool.kernels.cpu.attention import decode, gather, prefill, store
from kvtool.kernels.cpu.products import experts, gated, linear, prepare, weight_copies
from kvtool.kernels.cpu.step import add_rms_norm, likeliest, record, rms_norm, rotate, split_latent, split_qkv
from kvtool.kernels.plain import nucleus
from kvtool.kernels.reference.step import place  # as few operations as can be

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

fused = None  # between two products nothing is launched
tile_tokens = 1  # tokens of any pages are read as well
