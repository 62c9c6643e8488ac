from __future__ import annotations

from typing import Any

import pytest

from kvtool.catalog.decoder import Decoder, RopeScaling, Router
from kvtool.catalog.hf_config import model_from_config
from kvtool.catalog.hf_decoder import default_decoder
from tests.catalog.data import LLAMA, config


def decoder(**changes: object) -> Decoder | None:
    values: dict[str, Any] = {**LLAMA, **changes}
    return model_from_config(values, id="t", source="t").decoder


def published(name: str) -> Decoder:
    found = model_from_config(config(name), id="t", source="t").decoder
    assert found is not None
    return found


def test_llama_3_1() -> None:
    scaling = RopeScaling(
        kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    assert published("Meta-Llama-3.1-8B") == Decoder(
        family="llama",
        exact=True,
        norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling=scaling,
        eos_token_ids=(128001,),
    )


def test_deepseek_v3() -> None:
    found = published("DeepSeek-V3")
    assert (found.family, found.rope_interleaved, found.rope_scaling and found.rope_scaling.kind) == (
        "deepseek_v3",
        True,
        "yarn",
    )
    assert found.router == Router(
        scoring="sigmoid", normalise=True, scale=2.5, groups=8, groups_kept=4, group_score="top2", bias=True
    )


def test_deepseek_v2_lite() -> None:
    assert published("DeepSeek-V2-Lite").router == Router(normalise=False, scale=1.0)


def test_qwen3() -> None:
    dense, sparse = published("Qwen3-32B"), published("Qwen3-30B-A3B")
    assert (dense.qk_norm, dense.qkv_bias, dense.rope_theta) == (True, False, 1e6)
    assert sparse.router == Router(normalise=True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"norm_eps": 1e-6, "rope_theta": 10000.0, "qkv_bias": False, "output_bias": False, "mlp_bias": False}),
        ({"attention_bias": True, "mlp_bias": True}, {"qkv_bias": True, "output_bias": True, "mlp_bias": True}),
        ({"model_type": "qwen2"}, {"family": "qwen2", "qkv_bias": True, "output_bias": False}),
        ({"model_type": "mistral", "attention_bias": True}, {"qkv_bias": False, "output_bias": False}),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, {"rope_theta": 5e5, "rope_scaling": None}),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, {"rope_scaling": RopeScaling(kind="linear", factor=2.0)}),
        ({"eos_token_id": [1, 2]}, {"eos_token_ids": (1, 2)}),
        ({"hidden_act": "gelu"}, {"activation": "gelu"}),
    ],
)
def test_what_a_config_says_of_its_decoder(changes: dict[str, object], expected: dict[str, object]) -> None:
    found = decoder(**changes)
    assert found is not None
    assert found.exact
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "rope type 'longrope'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "rope type 'dynamic'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    ],
)
def test_what_the_engine_does_not_do_is_named(changes: dict[str, object], refused: str) -> None:
    found = decoder(**changes)
    assert found is not None
    assert found.refused == refused


def test_an_architecture_that_the_engine_does_not_run_has_no_decoder() -> None:
    assert decoder(model_type="granite") is None


GEMMA = {"head_dim": 256, "sliding_window": 512}
OPT = {
    "model_type": "opt", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 96,
    "vocab_size": 32, "max_position_embeddings": 64,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 32, "n_positions": 64}


def of(config: dict[str, object]) -> Decoder:
    found = model_from_config(config, id="t", source="t").decoder
    assert found is not None
    return found


def test_gemma_3_in_its_published_form() -> None:
    """As google/gemma-3-4b-it: one base for all layers but the local ones, and a scaling of the others alone."""
    found = decoder(
        model_type="gemma3_text", rope_theta=1e6, rope_local_base_freq=1e4, query_pre_attn_scalar=256, **GEMMA,
        rope_scaling={"rope_type": "linear", "factor": 8.0}, hidden_activation="gelu_pytorch_tanh",
        attn_logit_softcapping=None, final_logit_softcapping=None,
    )  # fmt: skip
    assert found == Decoder(
        family="gemma3_text",
        exact=True,
        activation="gelu_pytorch_tanh",
        norm_eps=found.norm_eps if found else 0.0,
        norms="around",
        scaled_embedding=True,
        rope_theta=1e6,
        rope_scaling=RopeScaling(kind="linear", factor=8.0),
        local_rope_theta=1e4,
        attention_scale=1 / 16,
        qk_norm=True,
        eos_token_ids=found.eos_token_ids if found else (),
    )


def test_gemma_3_in_the_form_of_transformers_5() -> None:
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    found = decoder(model_type="gemma3_text", rope_parameters=rope, **GEMMA)
    assert found is not None
    assert (found.rope_theta, found.local_rope_theta) == (5e5, 2e4)
    assert found.rope_scaling == RopeScaling(kind="linear", factor=8.0)
    rope["sliding_attention"] = {"rope_type": "linear", "factor": 2.0}
    scaled = decoder(model_type="gemma3_text", rope_parameters=rope, **GEMMA)
    assert scaled is not None
    assert scaled.refused == "scaled positions in sliding layers"


def test_a_multimodal_config_says_where_text_ends_outside_its_text_model() -> None:
    text = {
        "model_type": "gemma3_text", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 32,
    }  # fmt: skip
    found = of({"model_type": "gemma3", "eos_token_id": [1, 106], "text_config": text})
    assert (found.family, found.eos_token_ids) == ("gemma3_text", (1, 106))


def test_soft_caps_are_the_class_default_unless_given_or_switched_off() -> None:
    default, given = (
        decoder(model_type="gemma2", **GEMMA, **caps)
        for caps in ({}, {"attn_logit_softcapping": None, "final_logit_softcapping": 20.0})
    )
    assert default is not None
    assert given is not None
    assert (default.attention_softcap, default.logit_softcap) == (50.0, 30.0)
    assert (given.attention_softcap, given.logit_softcap) == (0.0, 20.0)
    unused = decoder(model_type="gemma3_text", attn_logit_softcapping=50.0, **GEMMA)
    assert unused is not None
    assert unused.refused == "attn_logit_softcapping in Gemma 3"


def test_smollm3_rotates_three_layers_of_four_or_those_that_are_listed() -> None:
    default = decoder(model_type="smollm3")
    listed = decoder(model_type="smollm3", num_hidden_layers=3, no_rope_layers=[0, 1, 1])
    assert default is not None
    assert listed is not None
    assert [default.rotates(layer) for layer in range(8)] == [True, True, True, False] * 2
    assert [listed.rotates(layer) for layer in range(3)] == [False, True, True]


def test_phi_3_has_longrope_under_its_older_names_too() -> None:
    scaling = {"type": "su", "short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]}
    found = decoder(
        model_type="phi3", rope_scaling=scaling, original_max_position_embeddings=4096, max_position_embeddings=131072
    )
    assert found is not None
    assert found.rope_scaling == RopeScaling(
        kind="longrope",
        factor=32.0,
        original_max_position_embeddings=4096,
        attention_factor=pytest.approx((1 + 5 / 12) ** 0.5),
        short_factor=(1.0, 2.0),
    )


@pytest.mark.parametrize(
    ("config", "changes", "refused"),
    [
        (GPT2, {"scale_attn_weights": False}, "scale_attn_weights false"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx true"),
        (OPT, {"do_layer_norm_before": False}, "do_layer_norm_before false"),
        (OPT, {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine false"),
        (OPT, {"word_embed_proj_dim": 32}, "word_embed_proj_dim 32"),
        (OPT, {"_remove_final_layer_norm": True}, "_remove_final_layer_norm true"),
    ],
)
def test_a_switch_of_gpt2_or_opt_that_no_option_serves_is_named(
    config: dict[str, object], changes: dict[str, object], refused: str
) -> None:
    assert of(config).refused is None
    assert of({**config, **changes}).refused == refused


def test_defaults_are_not_exact() -> None:
    families = (
        "llama mistral qwen2 qwen3 mixtral qwen3_moe deepseek_v2 deepseek_v3 phi3 olmo2 smollm3 gemma2 gemma3_text "
        "gpt_oss gpt2 opt"
    )
    for architecture in families.split():
        found = default_decoder(architecture)
        assert found is not None
        assert (found.family, found.exact) == (architecture, False)
    assert default_decoder("gemma") is None
    assert default_decoder(None) is None
