"""What vLLM takes where it is not told: the longest sequence."""

from __future__ import annotations

from typing import Any

import pytest

from kvtool.catalog.hf_config import model_from_config
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.vllm.inputs import resolve

CONFIG: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 96, "vocab_size": 32, "sliding_window": 512, "max_position_embeddings": 4096,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "scaling", "longest"),
    [
        ("olmo2", {"rope_type": "linear", "factor": 8.0}, 8 * 4096),
        ("olmo2", {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512}, 4096),
        ("gemma3_text", {"rope_type": "linear", "factor": 8.0}, 4096),
    ],
)
def test_linear_scaling_stretches_the_longest_sequence_but_not_gemma_3s(
    model_type: str, scaling: dict[str, object], longest: int
) -> None:
    """As ModelConfig._get_and_verify_max_len of vLLM 0.33 derives it."""
    config = {**CONFIG, "model_type": model_type, "rope_scaling": scaling}
    if model_type != "gemma3_text":
        del config["sliding_window"]
    model = model_from_config(config, id="m", source="a test")
    assert resolve(model, EngineOptions(name="vllm")).max_model_len == longest
