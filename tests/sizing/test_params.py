from __future__ import annotations

from dataclasses import replace

import pytest

from kvtool.catalog.model import Model
from kvtool.catalog.models_yaml import load_catalogue
from kvtool.sizing.params import count_params
from tests.sizing.example import DEEPSEEK_V3, LLAMA_8B


@pytest.fixture(scope="module")
def catalogue() -> dict[str, Model]:
    return {model.id: model for model in load_catalogue()}


# Parameters of the published checkpoints, to the last one.
PUBLISHED = {
    "openai-community/gpt2": 124_439_808,
    "facebook/opt-125m": 125_239_296,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-3-1b-it": 999_885_952,
    "allenai/Olmo-3-1025-7B": 7_298_011_136,
    "ibm-granite/granite-3.3-8b-instruct": 8_170_864_640,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "deepseek-ai/DeepSeek-V2-Lite": 15_706_484_224,
    "openai/gpt-oss-20b": 20_914_757_184,
    "nvidia/NVIDIA-Nemotron-Nano-9B-v2": 8_888_227_328,
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": 31_577_937_344,
}


@pytest.mark.parametrize("model_id", PUBLISHED)
def test_counts_are_those_of_the_published_checkpoints(model_id: str, catalogue: dict[str, Model]) -> None:
    params = count_params(catalogue[model_id])
    assert params is not None
    assert params.total == PUBLISHED[model_id]


def test_deepseek_v3_has_671_billion_without_its_prediction_layer() -> None:
    """The technical report (arXiv 2412.19437): 671B in all, 37B of them active for a token."""
    params = count_params(DEEPSEEK_V3)
    assert params is not None
    assert round(params.total / 1e9) == 671
    active = params.dense_read + params.embedding + params.experts * 8 // 256
    assert round(active / 1e9) in (37, 38)
    assert params.sparse_layers == 58


def test_a_tied_head_is_the_embedding_read_whole() -> None:
    tied, untied = (count_params(replace(LLAMA_8B, tie_word_embeddings=flag)) for flag in (True, False))
    assert tied is not None
    assert untied is not None
    assert untied.total - tied.total == 128256 * 4096
    assert untied.dense_read == tied.dense_read == untied.total - untied.embedding


@pytest.mark.parametrize(
    "unknown", [{"architecture": "nobody-knows"}, {"vocab_size": None}, {"intermediate_size": None}]
)
def test_what_the_shape_does_not_tell_is_not_guessed(unknown: dict[str, None]) -> None:
    assert count_params(replace(LLAMA_8B, **unknown)) is None


def test_shapes_agree_with_published_totals_where_both_are_known(catalogue: dict[str, Model]) -> None:
    """Within 3 % of every text-only checkpoint: what differs is multi-token prediction and padding."""
    # Vision towers, or prediction layers of some size.
    apart = ("ministral-3", "qwen3.5", "qwen3.6", "gemma-3-", "glm-4.5-air", "-vl-", "vision")
    apart += ("glm-4.7-flash", "glm-4.6v-flash")
    for model in load_catalogue():
        params = count_params(model)
        if params is None or model.params_total is None or any(name in model.id.lower() for name in apart):
            continue
        assert abs(params.total / model.params_total - 1) < 0.03, model.id
