"""Rotation tables against transformers' own, at the parameters that real models have."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from kvtool.catalog.decoder import Decoder, RopeScaling
from kvtool.catalog.hf_config import model_from_config
from kvtool.engine.decoder.rope import Rope, rope_frequencies
from kvtool.engine.decoder.transformer import runnable_decoder
from kvtool.kernels.plain import rotate
from kvtool.system.errors import KvtoolError

# As in the config.json of meta-llama/Llama-3.1-8B, deepseek-ai/DeepSeek-V3, deepseek-ai/DeepSeek-V2, the model card of
# Qwen/Qwen2.5-7B-Instruct, and openai/gpt-oss-20b.
PUBLISHED: dict[str, tuple[int, dict[str, object]]] = {
    "llama-3.1": (128, {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }),
    "deepseek-v3": (64, {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0,
        "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
    }),
    "deepseek-v2": (64, {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "mscale": 0.707, "mscale_all_dim": 0.707, "original_max_position_embeddings": 4096,
    }),
    "qwen2.5-yarn": (128, {
        "rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0, "original_max_position_embeddings": 32768,
    }),
    "gpt-oss": (64, {
        "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "truncate": False, "original_max_position_embeddings": 4096,
    }),
    "linear": (128, {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0}),
}  # fmt: skip
CONFIG = {
    "model_type": "llama", "hidden_size": 1024, "num_attention_heads": 8, "num_hidden_layers": 1, "vocab_size": 32,
    "intermediate_size": 64, "max_position_embeddings": 131072,
}  # fmt: skip


def decoder_of(rope: dict[str, object]) -> Decoder | None:
    return model_from_config({**CONFIG, "rope_parameters": rope}, id="m", source="a test").decoder


@pytest.mark.parametrize(("dim", "rope"), PUBLISHED.values(), ids=list(PUBLISHED))
def test_published_scalings_turn_as_in_transformers(dim: int, rope: dict[str, object]) -> None:
    config = LlamaConfig(head_dim=dim, max_position_embeddings=131072, rope_parameters=dict(rope))
    expected, expected_magnitude = ROPE_INIT_FUNCTIONS[str(rope["rope_type"])](config, torch.device("cpu"))
    decoder = decoder_of(rope)
    assert decoder is not None
    found, magnitude = rope_frequencies(decoder.rope_theta, dim, decoder.rope_scaling)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert magnitude == pytest.approx(expected_magnitude, rel=1e-12)


def test_tables_reach_exactly_to_the_last_position() -> None:
    rope = Rope(10000.0, None, 8, 100, dtype=torch.float32, device=torch.device("cpu"))
    cos, sin = rope.at(torch.tensor([0, 99]))
    assert cos.shape == sin.shape == (2, 1, 8)
    angles = 99 * 10000.0 ** (-torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(cos[1, 0], torch.cat((angles.cos(), angles.cos())))
    with pytest.raises(IndexError):
        rope.at(torch.tensor([100]))


def test_a_rotation_keeps_lengths_and_depends_on_distance_alone() -> None:
    rope = Rope(10000.0, None, 16, 64, dtype=torch.float64, device=torch.device("cpu"))
    q, k = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def at(x: torch.Tensor, position: int) -> torch.Tensor:
        return rotate(x.expand(1, 1, 16), rope.at(torch.tensor([position])))[0, 0]

    torch.testing.assert_close(at(q, 40).norm(), q.norm(), rtol=1e-6, atol=0)
    torch.testing.assert_close(at(q, 40) @ at(k, 33), at(q, 7) @ k, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (RopeScaling(kind="dynamic", factor=4.0), "rope scaling 'dynamic' is not one the engine runs"),
        (RopeScaling(kind="longrope", factor=4.0, short_factor=(1.0,)), "'longrope' has 1 short factors for 32 freq"),
        (RopeScaling(kind="yarn", factor=4.0), "rope scaling 'yarn' lacks 'original_max_position_embeddings'"),
        (RopeScaling(kind="llama3", factor=4.0, original_max_position_embeddings=8192), "lacks 'low_freq_factor'"),
    ],
)
def test_a_scaling_that_is_not_complete_is_refused(scaling: RopeScaling, message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        rope_frequencies(10000.0, 64, scaling)


@pytest.mark.parametrize(
    ("rope", "refused"),
    [
        ({"rope_type": "yarn", "original_max_position_embeddings": 4096}, "rope type 'yarn' without a factor"),
        ({"rope_type": "longrope", "factor": 4.0}, "rope type 'longrope'"),
        ({"rope_type": "dynamic", "factor": 4.0}, "rope type 'dynamic'"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"full_attention": {"rope_type": "default"}}, "rope parameters that differ between layers"),
    ],
)
def test_positions_that_the_engine_cannot_turn_are_refused_by_name(rope: dict[str, object], refused: str) -> None:
    model = model_from_config({**CONFIG, "rope_parameters": rope}, id="m", source="a test")
    assert model.decoder is not None
    assert model.decoder.refused == refused
    with pytest.raises(KvtoolError, match=f"the engine does not run m, which has {refused}: `kvtool size` can"):
        runnable_decoder(model)


def test_longrope_stays_inside_its_original_context() -> None:
    scaling = RopeScaling(
        kind="longrope", factor=4.0, original_max_position_embeddings=64, attention_factor=1.2, short_factor=(1.0,) * 8
    )
    where = {"dtype": torch.float32, "device": torch.device("cpu")}
    Rope(10000.0, scaling, 16, 64, **where)
    with pytest.raises(KvtoolError, match="the engine runs LongRoPE inside its original context of 64 tokens, not 65"):
        Rope(10000.0, scaling, 16, 65, **where)


def test_a_part_of_a_head_is_turned() -> None:
    rope = Rope(10000.0, None, 8, 64, dtype=torch.float64, device=torch.device("cpu"))
    x = torch.randn(3, 2, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotation = rope.at(torch.tensor([5, 6, 7]))
    turned = rotate(x, rotation)
    assert torch.equal(turned[..., 8:], x[..., 8:])
    assert torch.equal(turned[..., :8], rotate(x[..., :8], rotation))
