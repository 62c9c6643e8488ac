"""Multi-token prediction: what draft layers add, and what recurrent layers keep for drafted tokens (vLLM's shapes)."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtool.catalog.hf_config import read_config
from kvtool.catalog.model import Layer, Model
from kvtool.catalog.models_yaml import load_catalogue
from kvtool.results import SizeRow
from kvtool.sizing.drafts import DraftRequest, draft_of, loaded_weights, parse_speculative_config, with_draft
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.sglang import plan as sglang_plan
from kvtool.sizing.engines.vllm.ledger import DRAFTS, ledger
from kvtool.sizing.engines.vllm.plan import VllmPlan, plan
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.size import size
from kvtool.sizing.weights import weigh
from kvtool.system.errors import KvtoolError
from kvtool.units import GIB
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


def vllm_plan(name: str, version: str, pool_gib: float, draft: DraftRequest, **flags: object) -> VllmPlan:
    model = CATALOGUE.get(name)
    options = EngineOptions(name="vllm", version=version, num_speculative_tokens=draft.tokens, **flags)  # type: ignore[arg-type]
    return plan(with_draft(model, draft_of(model, draft)), options, pool_bytes=round(pool_gib * GIB))


def test_mtp_joins_the_groups_and_a_state_takes_a_block_a_drafted_token() -> None:
    """A public start of vLLM 0.23, Qwen3.6-27B (the shape of Qwen3.5-27B) with MTP 2: "Add 3 padding layers", blocks of
    1,600 tokens, 48.6 GiB, "GPU KV cache size: 1,394,129 tokens", 5.32x.
    """
    found = vllm_plan(
        *("qwen3.5-27b", "0.23.1", 48.6, DraftRequest(tokens=2)),
        kv_cache_dtype="fp8",
        max_model_len=262_144,
        enable_prefix_caching=True,
    )
    assert [len(group.layers) for group in found.groups] == [16, 16, 16, 17]
    assert found.groups[0].block_size == 1600
    assert (found.num_blocks, found.blocks_per_request) == (936, 164 + 3 * (1 + 1 + 2))
    assert found.gpu_kv_cache_tokens == 1_394_129
    assert found.log_line is not None
    assert found.log_line.endswith("5.32x")


def test_eagle_is_one_layer_more() -> None:
    """A public start of vLLM 0.9, Llama-3.1-8B with an EAGLE head: 51.63 GiB, 410,128 tokens, 3.13x."""
    eagle = DraftRequest(tokens=3, method="eagle", name="yuhuili/EAGLE-LLaMA3.1-Instruct-8B")
    found = vllm_plan("llama-3.1-8b", "0.10", 51.63, eagle)
    assert found.bytes_per_block == (33 * 16 * 4096,)
    assert found.gpu_kv_cache_tokens == 410_128
    assert [term.bytes for term in ledger(found, 131_072) if term.term == DRAFTS] == [131_072 * 4096]


def test_drafts_run_on_the_last_stage_of_vllm_too() -> None:
    found = vllm_plan("llama-3.1-8b", "0.33", 40, DraftRequest(tokens=3, method="eagle3"), parallel=Parallel(pp=2))
    assert [sum(len(group.layers) for group in stage) for stage in found.stages] == [16, 17]


def test_what_a_draft_weighs() -> None:
    """EAGLE: a layer of Llama and a projection of two hidden states; Medusa: 3 blocks and 3 heads."""
    layer = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336 + 2 * 4096
    eagle = draft_of(LLAMA_8B, DraftRequest(tokens=3, method="eagle"))
    assert eagle.weights_bytes == 2 * (layer + 2 * 4096 * 4096)
    medusa = draft_of(LLAMA_8B, DraftRequest(tokens=3, method="medusa"))
    assert (medusa.layers, medusa.weights_bytes) == ((), 2 * 3 * (4096 * 4096 + 4096 * 128_256))
    assert draft_of(LLAMA_8B, DraftRequest(tokens=4, method="ngram")).weights_bytes == 0


def test_own_draft_layers_are_loaded_where_they_draft() -> None:
    """GLM-5's published count leaves 9,953,939,712 beside the main model, which are the draft layer's."""
    whole = weigh(CATALOGUE.get("glm-5"))
    assert whole.stored_bytes is not None
    alone = loaded_weights(whole, None)
    assert whole.stored_bytes - (alone.stored_bytes or 0) == pytest.approx(2 * 9_953_939_712, rel=2e-4)
    mtp = draft_of(whole.model, DraftRequest(tokens=1))
    assert loaded_weights(whole, mtp) == whole
    eagle = draft_of(LLAMA_8B, DraftRequest(tokens=3, method="eagle"))
    assert loaded_weights(weigh(LLAMA_8B), eagle).draft_bytes == eagle.weights_bytes


def test_a_draft_model_brings_its_layers_and_an_unknown_one_is_refused() -> None:
    small = CATALOGUE.get("llama-3.2-1b")
    draft = draft_of(LLAMA_8B, DraftRequest(tokens=5, name="llama-3.2-1b", model=small))
    assert (draft.method, draft.layers) == ("draft_model", small.layers)
    with pytest.raises(KvtoolError, match=r"--draft some/DFlash-b16: what a dflash draft keeps is in its config"):
        draft_of(LLAMA_8B, DraftRequest(tokens=5, name="some/DFlash-b16"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mtp", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ('{"num_speculative_tokens": true}', "num_speculative_tokens True must be from 1 to 64"),
        ("[1]", "must be an object"),
        ('{"method": "mtp"}', "num_speculative_tokens None must be from 1 to 64"),
        ('{"method": "oracle", "num_speculative_tokens": 1}', "unknown method 'oracle'"),
    ],
)
def test_a_speculative_config_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        parse_speculative_config(text)


def test_vllms_names_of_own_layers_are_mtp() -> None:
    found = parse_speculative_config('{"method": "qwen3_next_mtp", "num_speculative_tokens": 2}')
    assert (found.method, found.tokens, found.name) == ("mtp", 2, None)


def test_sglang_charges_a_token_with_the_drafts_layers_since_0_5_16() -> None:
    """srt/model_executor/pool_configurator.py: the cell x (32 + 1) / 32 for an EAGLE head of Llama's shape."""
    model = with_draft(LLAMA_8B, draft_of(LLAMA_8B, DraftRequest(tokens=3, method="eagle")))
    tokens = {}
    for version in ("0.5.13", "0.5.23"):
        options = EngineOptions(name="sglang", version=version, num_speculative_tokens=3)
        found = sglang_plan(model, options, pool_bytes=33 << 30).allocation
        assert found is not None
        tokens[version] = found.max_total_num_tokens
    assert tokens == {"0.5.13": (33 << 30) // (32 * 4096), "0.5.23": (33 << 30) // (33 * 4096)}
