"""How a checkpoint's weights are stored, from its `quantization_config`. An unknown method is refused by name."""

from __future__ import annotations

from collections.abc import Callable

from kvtool.catalog.fields import Fields
from kvtool.catalog.model import Moe, Quantisation
from kvtool.catalog.quantised_parts import DENSE, MIXERS, excluded_modules, parts_left_whole

_SCALE_BITS = 16  # group-wise integer formats keep fp16 scales
_NVFP4_BITS = 4 + 8 / 16  # an fp8 scale for 16 weights
_MXFP4_BITS = 4 + 8 / 32  # a power-of-two scale byte for 32 weights
_NF4_BLOCK = 64


def read_quantisation(config: Fields, num_layers: int = 0, moe: Moe | None = None) -> Quantisation | None:
    """Method and bits of a quantised weight, its scales included, and what of `num_layers` layers is left out; None
    where the weights are not quantised.
    """
    fields = config.nested("quantization_config")
    if fields is None or not fields.values:
        return None
    method = fields.text("quant_method")
    if method is None and fields.has("quant_algo"):
        method = "modelopt"
    if method is None:
        raise fields.error("field 'quant_method' is missing")
    reader = _READERS.get(method.lower())
    if reader is None:
        raise fields.error(f"quant_method {method!r} is not known (known: {', '.join(_READERS)})")
    bits = reader(fields)
    if method.lower() == "mxfp4":  # gpt-oss: routed experts alone
        return Quantisation(method="mxfp4", bits_per_weight=bits, whole=frozenset({MIXERS, DENSE}))
    whole = parts_left_whole(excluded_modules(fields), num_layers, moe)
    return Quantisation(
        method=method.lower(),
        bits_per_weight=None if whole is None else bits,
        expert_bits=_MXFP4_BITS if config.text("expert_dtype") == "fp4" else None,  # DeepSeek-V4
        whole=whole or frozenset(),
    )


def _fp8(fields: Fields) -> float:
    """One byte a weight, and an fp32 scale a block where blocks are given."""
    block = fields.integers("weight_block_size", length=None, low=1)
    return 8 + 32 / (block[0] * block[1]) if block and len(block) == 2 else 8.0


def _groups_of_integers(fields: Fields) -> float:
    """AWQ and GPTQ: `bits` a weight, an fp16 scale and a zero point a group; group -1 is a whole column."""
    bits = fields.integer("bits", "w_bit", high=16)
    group = fields.optional_integer("group_size", "q_group_size", low=-1)
    return bits + ((_SCALE_BITS + bits) / group if group is not None and group > 0 else 0.0)


def _modelopt(fields: Fields) -> float | None:
    algorithm = (fields.text("quant_algo") or "").upper()
    if algorithm == "MIXED_PRECISION":
        return None
    bits = {
        "NVFP4": _NVFP4_BITS,
        "NVFP4_AWQ": _NVFP4_BITS,
        "W4A16_NVFP4": _NVFP4_BITS,
        "FP8": 8.0,
        "MXFP8": 8 + 8 / 32,
    }.get(algorithm)
    if bits is None:
        raise fields.error(f"quant_algo {algorithm!r} is not known (known: NVFP4, FP8, MXFP8)")
    return bits


def _compressed_tensors(fields: Fields) -> float | None:
    """The bits of the config groups' weights; None for groups that differ."""
    groups = fields.nested("config_groups")
    if groups is None or not groups.values:
        raise fields.error("field 'config_groups' is missing")
    found = {_one_group(groups, name) for name in groups.values}
    return found.pop() if len(found) == 1 else None


def _one_group(groups: Fields, name: str) -> float:
    group = groups.nested(name)
    weights = group.nested("weights") if group else None
    if weights is None:
        raise groups.error(f"config group {name!r} has no 'weights'")
    bits = weights.integer("num_bits", high=16)
    size = weights.optional_integer("group_size", low=-1)
    if size is None or size <= 0:
        return float(bits)
    if weights.text("type") == "float" and bits == 4:
        return bits + 8 / size
    zero_point = 0 if weights.flag("symmetric", default=True) else bits
    return bits + (_SCALE_BITS + zero_point) / size


def _bitsandbytes(fields: Fields) -> float:
    """LLM.int8(), or NF4/FP4 in blocks of 64 with fp32 block scales, which double quantisation stores as bytes."""
    if fields.flag("load_in_8bit", "_load_in_8bit", default=False):
        return 8.0
    if not fields.flag("load_in_4bit", "_load_in_4bit", default=False):
        raise fields.error("neither 'load_in_4bit' nor 'load_in_8bit' is set")
    double = fields.flag("bnb_4bit_use_double_quant", default=False)
    return 4 + (8 / _NF4_BLOCK + 32 / (_NF4_BLOCK * 256) if double else 32 / _NF4_BLOCK)


_READERS: dict[str, Callable[[Fields], float | None]] = {
    "fp8": _fp8,
    "fbgemm_fp8": lambda fields: 8.0,
    "mxfp4": lambda fields: _MXFP4_BITS,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "awq": _groups_of_integers,
    **dict.fromkeys(("gptq", "gptq_marlin", "awq_marlin", "auto-round"), _groups_of_integers),
    "compressed-tensors": _compressed_tensors,
    "bitsandbytes": _bitsandbytes,
}
