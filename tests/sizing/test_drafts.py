"""Multi-token prediction: what draft layers add, and what recurrent layers keep for drafted tokens (vLLM's shapes)."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtool.catalog.hf_config import read_config
from kvtool.catalog.model import Layer, Model
from kvtool.catalog.models_yaml import load_catalogue
from kvtool.errors import KvtoolError
from kvtool.results import SizeRow
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.size import size
from tests.sizing.example import LLAMA_8B

DATA = Path(__file__).parents[1] / "data"
CATALOGUE = load_catalogue()


def row(model: Model, drafted: int, **options: object) -> SizeRow:
    return size(model, options=SizeOptions(contexts=(8192,), num_speculative_tokens=drafted, **options)).rows[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("vllm_configs/deepseek-ai--DeepSeek-V3", "deepseek-v3"),
        ("hf_configs/deepseek-ai--DeepSeek-V3.2", "deepseek-v3.2"),
        ("vllm_configs/deepseek-ai--DeepSeek-V4-Flash", "deepseek-v4-flash"),
        ("hf_configs/zai-org--GLM-5.1", "glm-5.1"),
        ("vllm_configs/Qwen--Qwen3.5-27B", "qwen3.5-27b"),
        ("vllm_configs/Qwen--Qwen3-Next-80B-A3B-Instruct", "qwen3-next-80b-a3b-instruct"),
        ("hf_configs/nvidia--NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16", "nvidia-nemotron-3-ultra-550b-a55b-bf16"),
    ],
)
def test_config_and_catalogue_agree_on_one_draft_layer(config: str, name: str) -> None:
    drafts = read_config(DATA / f"{config}.json").draft_layers
    assert len(drafts) == 1
    assert drafts == CATALOGUE.get(name).draft_layers


def test_a_draft_layer_of_v3_is_one_more_latent() -> None:
    model = CATALOGUE.get("deepseek-v3")
    assert row(model, 0).kv.bytes_per_token == 61 * 1152
    assert row(model, 1).kv.bytes_per_token == row(model, 3).kv.bytes_per_token == 62 * 1152
    assert row(model, 1).inputs.num_speculative_tokens == 1


def test_draft_layers_run_on_the_last_stage() -> None:
    """61 layers on 2 stages are 31 and 30; with the draft layer the last stage has 31 as well."""
    model = CATALOGUE.get("deepseek-v3")
    stages = [row(model, drafted, parallel=Parallel(pp=2)).kv.bytes_per_gpu for drafted in (0, 1)]
    assert stages == [31 * 1152 * 8192] * 2


def test_recurrent_layers_keep_a_state_for_each_drafted_token() -> None:
    """Qwen3-Next: 8192 channels x (3 + 2) inputs and 32 x 128 x 128 of state, 3 times, in 36 layers; 13 full."""
    kv = row(CATALOGUE.get("qwen3-next-80b-a3b-instruct"), 2).kv
    assert kv.state_bytes_per_sequence == 36 * 3 * (8192 * 5 + 32 * 128 * 128) * 2
    assert kv.bytes_per_token == 13 * 2 * 2 * 256 * 2


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(KvtoolError, match=r"--num-speculative-tokens 1: no draft layers \(MTP\) of llama-8b are known"):
        row(LLAMA_8B, 1)
    with pytest.raises(KvtoolError, match="num speculative tokens 65 must be from 0 to 64"):
        row(LLAMA_8B, 65)
    sharing = read_config(DATA / "vllm_configs/zai-org--GLM-5.2.json")
    assert sharing.draft_layers == ()
    assert isinstance(sharing.layers[-1], Layer)


def test_drafting_is_said() -> None:
    document = size(CATALOGUE.get("deepseek-v3"), options=SizeOptions(num_speculative_tokens=1))
    assert any("drafting 1 tokens a step with the model's own 1 draft layers" in line for line in document.assumptions)
