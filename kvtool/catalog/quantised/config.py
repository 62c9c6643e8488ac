"""How a checkpoint's weights are stored, from its `quantization_config`. An unknown method is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain

from kvtool.catalog.fields import Fields
from kvtool.catalog.model import LayerBits, Moe, Quantisation
from kvtool.catalog.quantised.parts import (
    DENSE,
    MIXERS,
    alike,
    excluded_modules,
    layers_by_exclusion,
    layers_by_name,
    shape_of,
    towers_left_whole,
)

_SCALE_BITS = 16  # group-wise integer formats keep fp16 scales
_NVFP4_BITS = 4 + 8 / 16  # an fp8 scale for 16 weights; the second level is one fp32 a tensor
_MXFP4_BITS, _MXFP8_BITS = 4 + 8 / 32, 8 + 8 / 32  # a power-of-two scale byte for 32 weights
_NF4_BLOCK = 64
_HEADS = ("lm_head", "language_model.lm_head")
_ALGORITHMS = {
    **dict.fromkeys(("NVFP4", "NVFP4_AWQ", "NVFP4_SVD", "W4A16_NVFP4", "W4A8_NVFP4_FP8"), _NVFP4_BITS),
    **dict.fromkeys(("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "W8A8_SQ_PER_CHANNEL", "W8A16"), 8.0),
    **dict.fromkeys(("W4A16", "W4A16_AWQ", "W4A8_AWQ", "INT4_AWQ"), 4 + _SCALE_BITS / 128),
    "MXFP8": _MXFP8_BITS,
    "MXFP4": _MXFP4_BITS,
}
# torchao's configs by name: int4 keeps a bf16 scale and zero point a group.
_TORCHAO = {"int8": 8.0, "float8": 8.0, "fp8": 8.0, "mxfp8": _MXFP8_BITS, "nvfp4": _NVFP4_BITS, "mxfp4": _MXFP4_BITS}


def read_quantisation(
    config: Fields, num_layers: int = 0, moe: Moe | None = None, text: Fields | None = None
) -> Quantisation | None:
    """Method and bits of a quantised weight, its scales included, and what of `num_layers` layers is left out; None
    where the weights are not quantised. `text` is the part of `config` that is about the text model, else all of it.
    """
    fields = config.nested("quantization_config")
    if fields is None or not fields.values:
        return None
    method = fields.text("quant_method")
    if method is None and fields.has("quant_algo"):
        method = "modelopt"
    if method is None:
        raise fields.error("field 'quant_method' is missing")
    name = method.lower()
    if name == "mxfp4":  # gpt-oss: routed experts alone
        return Quantisation(method=name, bits_per_weight=_MXFP4_BITS, whole=frozenset({MIXERS, DENSE}))
    experts = _experts_apart(fields)
    if experts is not None:
        return Quantisation(method=name, bits_per_weight=_fp8(fields), expert_bits=experts)
    reader = _READERS.get(name)
    if reader is None:
        raise fields.error(f"quant_method {method!r} is not known (known: mxfp4, {', '.join(_READERS)})")
    patterns, modules = excluded_modules(fields), _listed(fields)
    shape = shape_of(text or config, num_layers, moe)
    bits = None if modules else reader(fields)
    if modules:
        layers = layers_by_name(modules, shape)
        head = next((modules[name] for name in _HEADS if name in modules), None)
    else:
        layers = () if bits is None else layers_by_exclusion(patterns, bits, shape)
        head = bits if fields.flag("lm_head", default=False) else None
    towers = towers_left_whole(patterns, num_layers) or (
        bool(modules) and not towers_left_whole([*modules], num_layers)
    )
    stored = _stored_alike(name, bits, layers, towers=towers)
    own = _MXFP4_BITS if config.text("expert_dtype") == "fp4" else stored.expert_bits  # DeepSeek-V4
    return replace(stored, expert_bits=own, head_bits=head)


def _experts_apart(fields: Fields) -> float | None:
    """Bits of routed experts that were quantised anew in a checkpoint of fp8 (DeepSeek-V4's in NVFP4); else None."""
    algorithm = (fields.text("moe_quant_algo") or "").upper()
    return _ALGORITHMS.get(algorithm) if fields.text("quant_method") == "fp8" else None


def _stored_alike(method: str, bits: float | None, layers: tuple[LayerBits, ...], *, towers: bool) -> Quantisation:
    """Bits of each part where all layers have the same of it; else those of every layer that the config tells of."""
    whole = alike(layers, towers=towers)
    if whole is None:
        return Quantisation(method=method, bits_per_weight=None, layers=_told(layers))
    mixer = next((layer.mixer for layer in layers if layer.mixer), None)
    dense = next((layer.dense for layer in layers if layer.dense), None)
    experts = next((layer.experts for layer in layers if layer.experts), None)
    most = bits or dense or experts or mixer
    return Quantisation(
        method=method,
        bits_per_weight=most,
        mixer_bits=None if mixer == most else mixer,
        expert_bits=None if experts == most else experts,
        whole=whole,
    )


def _told(layers: tuple[LayerBits, ...]) -> tuple[LayerBits, ...]:
    """Layers of which the config says something; none where it names none of their modules."""
    return layers if any(layer.mixer or layer.dense or layer.experts for layer in layers) else ()


def _listed(fields: Fields) -> dict[str, float]:
    """Bits of each module where the config names them one by one: ModelOpt's quantized_layers, or config groups of
    compressed-tensors that target module names.
    """
    layers = fields.nested("quantized_layers")
    if layers is not None:
        return {name: _algorithm(layers, name) for name in layers.values}
    groups = fields.nested("config_groups")
    if groups is None or len(groups.values) < 2:
        return {}
    named = {name: groups.nested(name) for name in groups.values}
    targets = {name: group.strings("targets") or [] for name, group in named.items() if group is not None}
    if not all("layers." in target for target in chain.from_iterable(targets.values())):
        return {}
    return {target: _one_group(groups, name) for name, own in targets.items() for target in own}


def _algorithm(layers: Fields, name: str) -> float:
    entry = layers.nested(name)
    algorithm = ((entry.text("quant_algo") if entry else None) or "").upper()
    if algorithm not in _ALGORITHMS:
        raise layers.error(f"module {name[:60]!r}: quant_algo {algorithm!r} is not known")
    return _ALGORITHMS[algorithm]


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
    if algorithm not in _ALGORITHMS:
        raise fields.error(f"quant_algo {algorithm!r} is not known (known: NVFP4, FP8, MXFP8, W4A16_AWQ)")
    return _ALGORITHMS[algorithm]


def _compressed_tensors(fields: Fields) -> float | None:
    """The bits of the config groups' weights; None for groups that differ."""
    groups = fields.nested("config_groups")
    if groups is None or not groups.values:
        raise fields.error("field 'config_groups' is missing")
    found = {_one_group(groups, name) for name in groups.values}
    return found.pop() if len(found) == 1 else None


def _one_group(groups: Fields, name: str) -> float:
    """Bits of one group's weights: fp8 scales of 16 (NVFP4), fp32 scales of a block (128 x 128), else fp16 scales of a
    group, with zero points where it is not symmetric; those of a channel or tensor are too few to count.
    """
    group = groups.nested(name)
    weights = group.nested("weights") if group else None
    if weights is None:
        raise groups.error(f"config group {name!r} has no 'weights'")
    bits = weights.integer("num_bits", high=16)
    block = weights.integers("block_structure", low=1) if isinstance(weights.get("block_structure"), list) else None
    if block and len(block) == 2:
        return bits + 32 / (block[0] * block[1])
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


def _torchao(fields: Fields) -> float:
    """torchao names its config after what it stores: int4_weight_only, Float8DynamicActivationFloat8WeightConfig ..."""
    kind = fields.get("quant_type")
    default = kind.get("default") if isinstance(kind, dict) else kind
    name = str(default.get("_type") if isinstance(default, dict) else default).lower().replace("_", "")
    data = default.get("_data") if isinstance(default, dict) else None
    if "int4" in name:
        group = data.get("group_size", 128) if isinstance(data, dict) else 128
        if not isinstance(group, int) or group < 1:
            raise fields.error(f"torchao's group_size {str(group)[:20]!r} is not a number of weights")
        return 4 + 2 * _SCALE_BITS / group
    found = next((bits for word, bits in _TORCHAO.items() if word in name), None)
    if found is None:
        raise fields.error(f"torchao's quant_type {name[:60]!r} is not known (known: int4, {', '.join(_TORCHAO)})")
    return found


_READERS: dict[str, Callable[[Fields], float | None]] = {
    "fp8": _fp8,
    "fbgemm_fp8": lambda fields: 8.0,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "modelopt_mixed": _modelopt,
    "awq": _groups_of_integers,
    **dict.fromkeys(("gptq", "gptq_marlin", "awq_marlin", "auto-round"), _groups_of_integers),
    "compressed-tensors": _compressed_tensors,
    "bitsandbytes": _bitsandbytes,
    "torchao": _torchao,
}
