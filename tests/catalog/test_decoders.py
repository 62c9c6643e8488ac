from __future__ import annotations

from typing import Any

import pytest

from kvtool.catalog.decoders import default_decoder
from kvtool.catalog.hf_config import model_from_config
from kvtool.catalog.model import Decoder, RopeScaling, Router
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
    "changes",
    [
        {"rope_scaling": {"rope_type": "longrope", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
        {"partial_rotary_factor": 0.5},
        {"model_type": "granite"},
    ],
)
def test_what_the_engine_does_not_run_has_no_decoder(changes: dict[str, object]) -> None:
    assert decoder(**changes) is None


def test_defaults_are_not_exact() -> None:
    for architecture in ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v3"):
        found = default_decoder(architecture)
        assert found is not None
        assert (found.family, found.exact) == (architecture, False)
    assert default_decoder("gemma2") is None
    assert default_decoder(None) is None
