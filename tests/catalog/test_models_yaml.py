from __future__ import annotations

import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from kvtool.catalog.fields import Fields
from kvtool.catalog.hf_config import read_config
from kvtool.catalog.model import (
    ChunkedAttention,
    CompressedAttention,
    FullAttention,
    GatedDeltaNet,
    KimiDeltaAttention,
    LatentAttention,
    LightningAttention,
    Mamba1,
    Mamba2,
    Model,
    SharedAttention,
    SlidingAttention,
)
from kvtool.catalog.models_yaml import Catalogue, load_catalogue
from kvtool.catalog.quantised.config import read_quantisation
from kvtool.sizing.weights import weigh
from kvtool.system.errors import KvtoolError
from tests.catalog.data import DATA, facts

FACTS = facts()
CATALOGUE = load_catalogue()
KIND_OF_PLAN = {
    FullAttention: "full",
    LatentAttention: "full",
    CompressedAttention: "compressed",
    SlidingAttention: "sliding",
    ChunkedAttention: "chunked",
    GatedDeltaNet: "linear",
    KimiDeltaAttention: "linear",
    LightningAttention: "linear",
    Mamba1: "mamba",
    Mamba2: "mamba",
    type(None): "mlp_only",
}
ENTRY = """
schema: kvtool.models/1
models:
- id: a/b
  layers: 2 full
  full: {kv_heads: 2, k_head_dim: 8, v_head_dim: 8}
  num_heads: 4
  hidden_size: 32
  source: test
  confidence: high
"""


def test_every_model_of_the_facts_that_its_kinds_can_say_is_there() -> None:
    assert len(FACTS) == 176
    assert {model.id for model in CATALOGUE} >= set(FACTS)


@pytest.mark.parametrize("name", FACTS)
def test_shape_is_that_of_the_facts(name: str) -> None:
    model, fact = CATALOGUE.get(name), FACTS[name]
    assert (model.num_layers, model.hidden_size) == (fact["num_layers"], fact["hidden_size"])
    assert (model.num_heads, model.vocab_size) == (fact["num_heads"], fact["vocab_size"])
    assert model.attention == fact["attention"]
    stored = [layer.cache for layer in model.layers if not isinstance(layer.cache, SharedAttention)]
    assert Counter(KIND_OF_PLAN[type(cache)] for cache in stored) == fact["layer_plan"]


@pytest.mark.parametrize("name", FACTS)
def test_vectors_kept_are_those_of_the_facts(name: str) -> None:
    """Bytes at 2 a value, the sums of what each layer's own fields say."""
    model, fact = CATALOGUE.get(name), FACTS[name]
    kinds = [layer.cache for layer in model.layers]
    heads = [kind for kind in kinds if isinstance(kind, FullAttention)]
    windows = [kind for kind in heads if isinstance(kind, SlidingAttention | ChunkedAttention)]
    full = sum(_head_bytes(kind) for kind in heads if type(kind) is FullAttention)
    latent = sum(2 * (k.kv_lora_rank + k.qk_rope_head_dim) for k in kinds if isinstance(k, LatentAttention))
    rows = [kind for kind in kinds if isinstance(kind, CompressedAttention)]
    compressed = sum(Fraction(2 * kind.head_dim, kind.ratio) for kind in rows if kind.ratio)
    assert full + latent + compressed == fact["kv_bytes_per_token"]
    assert sum(map(_head_bytes, windows)) + sum(2 * kind.head_dim for kind in rows) == fact["window_bytes_per_token"]
    caps = [_head_bytes(kind) * kind.window for kind in windows] + [2 * kind.head_dim * kind.window for kind in rows]
    assert sum(caps) == fact["window_cap_bytes"]
    indexers = [layer.indexer for layer in model.layers if layer.indexer]
    assert sum(2 * indexer.head_dim / indexer.ratio for indexer in indexers) == fact["indexer_bytes_per_token"]
    assert 2 * sum(map(_state_values, kinds)) == fact["state_bytes"]


def _head_bytes(kind: FullAttention) -> int:
    return 2 * kind.kv_heads * (kind.k_head_dim + kind.v_head_dim)


def _state_values(kind: object) -> int:
    """Convolution inputs (kernel - 1 of them) and the recurrent state."""
    match kind:
        case Mamba1():
            return kind.inner_dim * (kind.conv_kernel - 1 + kind.state_dim)
        case Mamba2():
            inner = kind.heads * kind.head_dim
            return (inner + 2 * kind.groups * kind.state_dim) * (kind.conv_kernel - 1) + inner * kind.state_dim
        case GatedDeltaNet():
            keys, values = kind.key_heads * kind.key_head_dim, kind.value_heads * kind.value_head_dim
            return (2 * keys + values) * (kind.conv_kernel - 1) + values * kind.key_head_dim
        case KimiDeltaAttention():
            return kind.heads * kind.head_dim * (3 * (kind.conv_kernel - 1) + kind.head_dim)
        case LightningAttention():
            return kind.heads * kind.head_dim**2
    return 0


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("llama-3.1-8b", "meta-llama/Llama-3.1-8B"),
        ("LLAMA-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("meta-llama/meta-llama-3.1-8b-instruct", "meta-llama/Llama-3.1-8B"),
        ("llama-2-7b", "meta-llama/Llama-2-7b-hf"),
        ("llama-3-8b", "meta-llama/Meta-Llama-3-8B"),
        ("llama-3-70b", "meta-llama/Meta-Llama-3-70B"),
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M"),
        ("gpt2", "openai-community/gpt2"),
        ("mistral-7b", "mistralai/Mistral-7B-v0.3"),
        ("mixtral-8x7b", "mistralai/Mixtral-8x7B-v0.1"),
        ("qwen3-0.6b", "Qwen/Qwen3-0.6B"),
        ("deepseek-v3", "deepseek-ai/DeepSeek-V3"),
        ("deepseek-v2-lite", "deepseek-ai/DeepSeek-V2-Lite"),
        ("gpt-oss-120b", "openai/gpt-oss-120b"),
        ("gemma-3-27b", "google/gemma-3-27b-it"),
        ("kimi-k2", "moonshotai/Kimi-K2-Instruct"),
    ],
)
def test_names_that_people_type(typed: str, found: str) -> None:
    assert CATALOGUE.get(typed).id == found


def test_a_typo_gets_the_nearest_names() -> None:
    with pytest.raises(KvtoolError, match=r"unknown model 'lama-3.1-8b': did you mean llama-3.1-8b"):
        CATALOGUE.get("lama-3.1-8b")


def test_sharing_layers_name_the_last_stored_layer_of_their_kind() -> None:
    layers = CATALOGUE.get("gemma-3n-e2b").layers
    sources = [layer.cache.source_layer for layer in layers if isinstance(layer.cache, SharedAttention)]
    assert sources == [18, 18, 18, 18, 19] * 2


def test_indexers_of_glm_5_3_sit_where_its_schedule_puts_them() -> None:
    """index_topk_freq 4, index_skip_topk_offset 3: layers 0, 1, 2, then every fourth from 6 on."""
    layers = CATALOGUE.get("glm-5.3").layers
    assert [index for index, layer in enumerate(layers) if layer.indexer] == [0, 1, 2, *range(6, 78, 4)]


def test_families_the_engine_runs_have_a_decoder_that_says_it_is_not_exact() -> None:
    llama, k2, gemma, falcon = (CATALOGUE.get(name) for name in ("llama-3.1-8b", "kimi-k2", "gemma-2-9b", "falcon-7b"))
    assert llama.decoder is not None
    assert (llama.decoder.family, llama.decoder.exact, llama.decoder.rope_theta) == ("llama", False, 500000.0)
    assert k2.decoder is not None
    assert k2.decoder.family == "deepseek_v3"
    assert gemma.decoder is not None
    assert (gemma.decoder.exact, gemma.decoder.attention_softcap, gemma.decoder.logit_softcap) == (False, 50.0, 30.0)
    assert falcon.decoder is None


def test_parameter_counts_that_mislead_were_replaced() -> None:
    """The published gpt2 holds its causal masks, Qwen3-0.6B its tied embedding twice."""
    assert CATALOGUE.get("gpt2").params_total == 124_439_808
    assert CATALOGUE.get("qwen3-0.6b").params_total == 596_049_920


def test_own_entries_decoded_one_by_one_are_those_of_the_whole_file(tmp_path: Path) -> None:
    """kvtool's own file is cut at its entries; read as a file of one's own, it is checked whole."""
    own = tmp_path / "models.yaml"
    own.write_bytes(Path(CATALOGUE.path).read_bytes())
    whole = load_catalogue(own)
    assert whole.entries() == CATALOGUE.entries()
    assert [item for name in ("llama3.1-8b", "qwen3-30b") if (item := whole.find(name))] == [
        CATALOGUE.get("llama-3.1-8b"),
        CATALOGUE.get("Qwen/Qwen3-30B-A3B"),
    ]


PUBLISHED = {  # quantization_config of the configs that each entry names as its source
    "deepseek-ai/DeepSeek-R1": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "moonshotai/Kimi-K2-Instruct": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "deepseek-ai/DeepSeek-V4-Flash": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}


def test_published_weights_are_those_of_their_configs() -> None:
    read = {}
    for id_ in ("deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-V3.2", "openai/gpt-oss-120b"):
        read[id_] = read_config(DATA / "hf_configs" / f"{id_.replace('/', '--')}.json").quantisation
    for id_, published in PUBLISHED.items():
        more = {"expert_dtype": "fp4"} if "V4" in id_ else {}
        read[id_] = read_quantisation(Fields({"quantization_config": published, **more}, where=id_))
    assert read == {entry.id: entry.quantisation for entry in CATALOGUE.entries() if entry.id in read}
    assert all(entry.quantisation_source for entry in CATALOGUE.entries() if entry.quantisation)


def test_a_published_checkpoint_weighs_what_it_does() -> None:
    """DeepSeek-V3: 684.5e9 parameters of 1 byte, 1/4096 of scales and 2 x 129,280 x 7,168 bytes more for embedding and
    head in bf16. gpt-oss-120b: 36 x 128 experts of 24.9e6 parameters at 4.25 bits, the rest in bf16.
    """
    v3, gpt_oss = (CATALOGUE.get(name) for name in ("deepseek-v3", "gpt-oss-120b"))
    assert weigh(v3).stored_bytes == pytest.approx(684.53e9 * (1 + 1 / 4096) + 2 * 129_280 * 7_168, rel=1e-4)
    assert weigh(v3, "bf16").stored_bytes == 2 * 684_531_386_000
    experts = 36 * 128 * (3 * 2880 * 2880 + 2 * 2880 + 2880)
    expected = experts * 4.25 / 8 + 2 * (116_829_156_672 - experts)
    assert weigh(gpt_oss).stored_bytes == pytest.approx(expected, rel=1e-4)


def test_deepseek_v4_keeps_its_experts_in_fp4() -> None:
    """44 layers (one of them a draft) x 256 experts x 3 x 4,096 x 2,048 at 4.25 bits; embedding and head in bf16."""
    experts, outer = 44 * 256 * 3 * 4_096 * 2_048, 2 * 129_280 * 4_096
    rest = 290_944_616_402 - experts - outer
    weights = weigh(CATALOGUE.get("deepseek-v4-flash"))
    assert weights.stored_bytes == pytest.approx(experts * 4.25 / 8 + 2 * outer + rest * (1 + 1 / 4096), abs=1)
    assert weights.source.endswith("in fp8, experts in 4.25 bits")


def _load(tmp_path: Path, text: str) -> Catalogue:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    return load_catalogue(path)


def test_a_catalogue_of_ones_own(tmp_path: Path) -> None:
    model = _load(tmp_path, ENTRY).get("B")
    assert isinstance(model, Model)
    assert (model.num_layers, model.attention, model.decoder) == (2, "gqa", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML"),
        ("[]", "is not a catalogue of models"),
        (ENTRY.replace("models/1", "models/9"), "has schema 'kvtool.models/9'"),
        (ENTRY.replace("hidden_size", "hiden_size"), "unknown field `hiden_size`"),
        (ENTRY.replace("v_head_dim: 8", "v_head_dimm: 8"), "block 'full' has unknown keys: v_head_dimm"),
        (ENTRY.replace("num_heads: 4", "num_heads: four"), "Expected `int`"),
        (ENTRY.replace("num_heads: 4", f"num_heads: 0x{'f' * 6000}"), "num_heads is a huge number: must be from 0"),
        (ENTRY.replace("num_heads: 4", "num_heads: 4\n  moe: {num_expert: 2}"), "block 'moe' has unknown keys"),
        (ENTRY + ENTRY.split("models:")[1], "'a/b' names both"),
    ],
)
def test_a_wrong_catalogue_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(KvtoolError, match=message.replace("[", r"\[")) as refused:
        _load(tmp_path, text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("2 ful", "has no block of that name"),
        ("2 sliding", "has no block of that name"),
        ("full+indexer", "needs an 'indexer' block"),
        ("full, shared_sliding", "has no block of that name"),
        ("shared_full", "has no earlier 'full' layer"),
        ("2 (full", "is not a layer pattern"),
    ],
)
def test_a_wrong_layer_is_refused_when_its_model_is_asked_for(tmp_path: Path, layers: str, message: str) -> None:
    catalogue = _load(tmp_path, ENTRY.replace("2 full", layers))
    with pytest.raises(KvtoolError, match=message):
        catalogue.get("b")


def test_a_missing_catalogue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KvtoolError, match="cannot read"):
        load_catalogue(tmp_path / "none.yaml")


def test_loading_imports_no_tensor_library() -> None:
    code = "import sys; import kvtool.catalog.resolve as r; r.resolve_model('gpt2'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("tag", ["!!timestamp", "!!bool", "!!set", "!!python/object", "!own"])
def test_a_tag_is_refused(tmp_path: Path, tag: str) -> None:
    (tmp_path / "a.yaml").write_text(f"schema: {tag} x\nmodels: []\n")
    with pytest.raises(KvtoolError, match=r"a\.yaml, line 1: tag .* is not read"):
        load_catalogue(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "name", ["Qwen--Qwen3-30B-A3B-FP8", "nvidia--Gemma-4-31B-IT-NVFP4", "nvidia--Qwen3.5-122B-A10B-NVFP4"]
)
def test_a_checkpoint_stores_its_weights_as_its_own_config_says(name: str) -> None:
    read = read_config(DATA / "hf_configs" / f"{name}.json")
    known = CATALOGUE.get(name.split("--")[1])
    assert (known.id, known.quantisation) == (name.replace("--", "/"), read.quantisation)
    assert (known.layers, known.assumed) == (read.layers, ())
