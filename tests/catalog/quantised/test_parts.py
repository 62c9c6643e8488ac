from __future__ import annotations

from dataclasses import replace

import pytest

from kvtool.catalog.hf_config import model_from_config
from kvtool.catalog.model import LayerBits, Moe
from kvtool.catalog.quantised.parts import Shape, alike, layers_by_exclusion, towers_left_whole
from kvtool.sizing.weights import weigh
from tests.catalog.data import LLAMA, config

MOE = Moe(num_experts=8, experts_per_token=2, intermediate_size=64, shared_intermediate_size=64, first_dense_layers=1)


@pytest.mark.parametrize(
    ("patterns", "whole"),
    [
        ([], set()),
        (["lm_head", "model.embed_tokens", "mtp.layers.0*", "model.visual*"], set()),
        (["model.layers.*.self_attn"], {"mixers"}),
        (["model.layers.0.self_attn*", "model.layers.1.linear_attn*", "model.layers.2.self_attn"], {"mixers"}),
        ([r"re:.*self_attn.*", r"re:.*shared_experts.*", r"re:.*mlp\.(gate|up|down)_proj.*"], {"mixers", "dense"}),
        (["*mlp.experts*"], {"experts"}),
        (["re:.*mlp.*", "re:([" + "x" * 9], {"dense", "experts"}),
        (["model.layers.0.self_attn*"], None),  # one layer of three
        (["re:.*shared_expert.*"], None),  # the dense layer's MLP is quantised
    ],
)
def test_parts_that_no_layer_quantises(patterns: list[str], whole: set[str] | None) -> None:
    layers = layers_by_exclusion(patterns, 1.0, Shape(num_layers=3, moe=MOE, mixer={}))
    assert alike(layers, towers=False) == whole


def test_matrices_of_a_latent_attention_count_by_their_size() -> None:
    """nvidia/DeepSeek-V3.1-NVFP4 quantises the output of its attention alone, and no layer behind the last."""
    sizes = {"q_a_proj": 30, "kv_b_proj": 10, "o_proj": 60}
    patterns = [f"model.layers.{layer}.self_attn.{name}" for layer in range(2) for name in ("q_a_proj", "kv_b_proj")]
    layers = layers_by_exclusion(patterns, 4.5, Shape(num_layers=2, moe=None, mixer=sizes))
    assert layers[0].mixer == pytest.approx(0.4 * 16 + 0.6 * 4.5)
    assert towers_left_whole(["model.layers.2*"], 2)
    assert not towers_left_whole(["model.layers.1*", "model.layers.2.eh_proj"], 2)


def test_experts_beside_a_dense_mlp_have_names_of_their_own() -> None:
    """nvidia/Gemma-4-26B-A4B-NVFP4 leaves out `mlp*`, which is the dense MLP there, not the experts."""
    sparse = replace(MOE, first_dense_layers=0)
    shape = Shape(num_layers=1, moe=sparse, mixer={}, experts_beside_mlp=True)
    (layer,) = layers_by_exclusion(["model.layers.0.mlp*", "model.layers.0.self_attn*"], 4.5, shape)
    assert layer == LayerBits(mixer=None, dense=None, experts=4.5)


def test_gpt_oss_is_as_large_as_published() -> None:
    """OpenAI's model card: 116.83 B parameters, a checkpoint of 60.8 GiB: experts in MXFP4, all else in bf16."""
    weights = weigh(model_from_config(config("gpt-oss-120b"), id="gpt-oss", source="config"))
    assert weights.stored_bytes is not None
    assert weights.stored_bytes / 2**30 == pytest.approx(60.8, abs=0.1)


def test_mixed_parts_without_a_count_are_unknown() -> None:
    """Attention is left out, but how many parameters it has is not known for this type."""
    quantised = {"quant_method": "fp8", "ignore": ["re:.*attn.*"]}
    values = {**LLAMA, "model_type": "hunyuan", "quantization_config": quantised}
    model = model_from_config(values, id="x", source="config")
    weights = weigh(replace(model, params_total=1000))
    assert weights.stored_bytes is None
    assert weights.source == "unknown: fp8 stores parts in several ways, and how large they are is not known"


def test_v4_has_experts_in_fp4() -> None:
    values = {
        **config("DeepSeek-V4-Flash"),
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    }
    stored = model_from_config(values, id="v4", source="config").quantisation
    assert stored is not None
    assert (stored.bits_per_weight, stored.expert_bits) == (8 + 32 / 128**2, 4.25)
