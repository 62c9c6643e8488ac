from __future__ import annotations

from typing import Any

import pytest

from kvtool.catalog.fields import Fields
from kvtool.catalog.model import LayerBits, Quantisation
from kvtool.catalog.quantised.config import read_quantisation
from kvtool.system.errors import KvtoolError

NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True}


def bits(config: dict[str, Any] | None) -> float | None:
    found = read_quantisation(Fields({"quantization_config": config}, where="config.json"))
    return found.bits_per_weight if found else None


def group(**weights: object) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, None),
        ({}, None),
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8 + 32 / 128**2),
        ({"quant_method": "mxfp4"}, 4.25),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4.5),
        ({"quant_algo": "FP8"}, 8),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4 + 20 / 128),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, 4),
        (group(num_bits=8, type="float", strategy="channel"), 8),
        (group(num_bits=4, type="float", group_size=16), 4.5),
        (group(num_bits=4, type="int", group_size=128, symmetric=True), 4 + 16 / 128),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8),
        (NF4, 4.5),
        ({**NF4, "bnb_4bit_use_double_quant": True}, 4 + 8 / 64 + 32 / 16384),
    ],
)  # fmt: skip
def test_bits_of_a_weight_with_its_scales(config: dict[str, Any] | None, expected: float | None) -> None:
    assert bits(config) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "quarot"}, "quant_method 'quarot' is not known"),
        ({"bits": 4}, "field 'quant_method' is missing"),
        ({"quant_method": "modelopt", "quant_algo": "W2A2"}, "quant_algo 'W2A2' is not known"),
        ({"quant_method": "modelopt"}, "quant_algo '' is not known"),
        ({"quant_method": "awq"}, "field 'bits' is missing"),
        ({"quant_method": "bitsandbytes"}, "neither 'load_in_4bit' nor 'load_in_8bit'"),
        ({"quant_method": "compressed-tensors"}, "field 'config_groups' is missing"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": {}}}, "config group 'a' has no 'weights'"),
    ],
)
def test_what_is_not_known_is_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        bits(config)


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": {"a": {"quant_algo": "FP8"}}},
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"a": {"weights": {"num_bits": 8}}, "b": {"weights": {"num_bits": 4}}},
        },
    ],
)
def test_layers_stored_in_several_ways_have_no_one_figure(config: dict[str, Any]) -> None:
    found = read_quantisation(Fields({"quantization_config": config}, where="config.json"))
    assert found is not None
    assert found.bits_per_weight is None


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("int8_weight_only", 8),
        ({"default": {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 32}}}, 4 + 32 / 32),
        ({"default": {"_type": "Float8DynamicActivationFloat8WeightConfig", "_data": {}}}, 8),
    ],
)
def test_torchao_names_its_config_after_what_it_stores(kind: object, expected: float) -> None:
    assert bits({"quant_method": "torchao", "quant_type": kind}) == expected


def test_blocks_of_compressed_tensors_have_an_fp32_scale() -> None:
    assert bits(group(num_bits=8, type="float", strategy="block", block_structure=[128, 128])) == 8 + 32 / 128**2


def test_modules_that_are_listed_say_it_of_each_layer() -> None:
    """ModelOpt's MIXED_PRECISION: attention in FP8, the MLPs and the output head in NVFP4."""
    layers = {f"model.layers.{layer}.self_attn.o_proj": {"quant_algo": "FP8"} for layer in range(2)}
    layers |= {f"model.layers.{layer}.mlp.down_proj": {"quant_algo": "W4A16_NVFP4"} for layer in range(1)}
    layers["lm_head"] = {"quant_algo": "W4A16_NVFP4"}
    config = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    found = read_quantisation(Fields({"quantization_config": config}, where="config.json"), 2)
    assert found is not None
    assert found.layers == (LayerBits(mixer=8, dense=4.5, experts=0), LayerBits(mixer=8, dense=None, experts=0))
    assert (found.bits_per_weight, found.head_bits, found.embedding_bits) == (None, 4.5, None)
    layers["model.layers.1.mlp.down_proj"] = {"quant_algo": "W4A16_NVFP4"}
    alike = read_quantisation(Fields({"quantization_config": config}, where="config.json"), 2)
    assert alike == Quantisation(
        method="modelopt", bits_per_weight=4.5, mixer_bits=8, whole=frozenset({"beyond"}), head_bits=4.5
    )


def test_experts_that_were_quantised_anew_keep_the_rest_as_it_was() -> None:
    """nvidia/DeepSeek-V4-Flash-NVFP4: a checkpoint of fp8 blocks whose routed experts are in NVFP4."""
    config = {
        "quant_method": "fp8",
        "quant_algo": "MIXED_PRECISION",
        "moe_quant_algo": "NVFP4",
        "weight_block_size": [128, 128],
        "ignore": ["*.attn.*", "*.ffn.shared_experts.*", "head", "mtp.*"],
        "quantized_layers": {f"layers.{layer}.ffn.experts": {"quant_algo": "NVFP4"} for layer in range(2)},
    }
    found = read_quantisation(Fields({"quantization_config": config}, where="config.json"), 2)
    assert found == Quantisation(method="fp8", bits_per_weight=8 + 32 / 128**2, expert_bits=4.5)
