"""Names as people type them: Ollama tags, variants and quantised repositories, resolved without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtool.catalog.models_yaml import load_catalogue
from kvtool.catalog.names import take_apart
from kvtool.catalog.resolve import resolve_model
from kvtool.sizing.weights import weigh
from kvtool.system.errors import KvtoolError

CATALOGUE = load_catalogue()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network and an empty Hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


# From public threads about engines' memory.
CATALOGUED = [
    "gpt-oss-20b",
    "gemma-3-12b-it",
    "qwen3-14b",
    "qwen2.5-14b",
    "qwen2.5-32b",
    "qwen3-coder-30b",
    "qwen3-vl-2b",
    "qwen3-vl-4b",
    "qwen3-vl-8b",
    "qwen3-vl-30b-a3b",
    "qwen3-vl-32b",
    "qwen3-vl-235b-a22b",
    "qwen3.5-35b-a3b",
    "qwen3.6-27b",
    "qwen3.6-35b",
    "gemma-4-12b",
    "gemma-4-31b",
    "deepseek-r1-distill-qwen-7b",
    "deepseek-r1-distill-qwen-14b",
    "deepseek-r1-distill-qwen-32b",
    "deepseek-r1-distill-llama-8b",
    "deepseek-r1-distill-llama-70b",
    "llama-3.1-405b",
    "mistral-small-3.2",
    "qwq-32b",
    "glm-4.5",
    "glm-4.7",
    "glm-4.7-flash",
    "deepseek-v4-pro",
    "moonshotai/Kimi-Dev-72B",
    "ibm-granite/granite-3.1-8b-instruct",
    "Qwen/Qwen3.5-2B",
    "ibm-granite/granite-vision-3.3-2b",
]


@pytest.mark.parametrize("name", CATALOGUED)
def test_names_of_public_threads_are_in_the_catalogue(name: str) -> None:
    assert resolve_model(name).assumed == ()


@pytest.mark.parametrize(
    ("name", "base", "method", "bits"),
    [
        ("Qwen3-14B-AWQ", "Qwen/Qwen3-14B", "awq", 4 + 20 / 128),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-7B", "gptq", 4 + 20 / 128),
        ("RedHatAI/Llama-3.3-70B-Instruct-fp8-dynamic", "meta-llama/Llama-3.3-70B-Instruct", "fp8", 8),
        ("redhatai/Meta-Llama-3.1-8B-Instruct-quantized.w8a8", "meta-llama/Llama-3.1-8B", "compressed-tensors", 8),
        ("unsloth/Qwen3.6-27B-NVFP4", "Qwen/Qwen3.6-27B", "nvfp4", 4.5),
        ("Qwen/Qwen3-VL-8B-Thinking-FP8", "Qwen/Qwen3-VL-8B-Instruct", "fp8", 8),
        ("mlx-community/Qwen3-8B-4bit", "Qwen/Qwen3-8B", "4bit", 4.5),
        ("cyankiwi/Qwen3.5-35B-A3B-AWQ-4bit", "Qwen/Qwen3.5-35B-A3B", "awq", 4 + 20 / 128),
        ("hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4", "meta-llama/Llama-3.1-70B", "awq", 4 + 20 / 128),
        ("Qwen2.5-Coder-32B-Instruct-AWQ", "Qwen/Qwen2.5-32B", "awq", 4 + 20 / 128),
        ("llama3.1:8b", "meta-llama/Llama-3.1-8B", "q4_k_m", 4.89),
        ("llama3.1:8b-instruct-q8_0", "meta-llama/Llama-3.1-8B", "q8_0", 8.5),
        ("gemma3:27b", "google/gemma-3-27b-it", "q4_k_m", 4.89),
        ("qwen3:30b", "Qwen/Qwen3-30B-A3B", "q4_k_m", 4.89),
        ("mistral-small3.2:24b", "mistralai/Mistral-Small-3.1-24B-Instruct-2503", "q4_k_m", 4.89),
        ("gpt-oss:20b", "openai/gpt-oss-20b", "mxfp4", 4.25),
        ("TheBloke/Mistral-7B-Instruct-v0.2-GPTQ", "mistralai/Mistral-7B-v0.2", "gptq", 4 + 20 / 128),
        ("devstral:24b", "mistralai/Devstral-Small-2507", "q4_k_m", 4.89),
        ("ISTA-DASLab/gemma-3-27b-it-GPTQ-4b-128g", "google/gemma-3-27b-it", "gptq", 4 + 20 / 128),
        ("nvidia/DeepSeek-R1-0528-NVFP4-v2", "deepseek-ai/DeepSeek-R1", "nvfp4", 4.5),
        ("mlx-community/Kimi-K2-Thinking-4bit", "moonshotai/Kimi-K2-Thinking", "4bit", 4.5),
        ("QuantTrio/MiniMax-M2.1-AWQ", "MiniMaxAI/MiniMax-M2", "awq", 4 + 20 / 128),
    ],
)
def test_a_variant_has_the_layers_of_its_base_and_says_so(name: str, base: str, method: str, bits: float) -> None:
    model, known = resolve_model(name), CATALOGUE.get(base)
    assert (model.id, model.layers) == (name, known.layers)
    assert model.quantisation is not None
    assert (model.quantisation.method, model.quantisation.bits_per_weight) == (method, pytest.approx(bits))
    assert f"layers of {known.id}, whose name it varies" in model.assumed[0]


def test_a_gguf_repository_does_not_say_how_large_its_weights_are() -> None:
    model = resolve_model("unsloth/Qwen3-30B-A3B-GGUF")
    assert model.quantisation is not None
    assert model.quantisation.bits_per_weight is None
    assert "give the file, or the type" in model.assumed[1]


def test_a_release_s_date_and_precision_change_no_layer() -> None:
    assert resolve_model("deepseek-r1-0528").layers == CATALOGUE.get("deepseek-r1").layers
    whole = resolve_model("unsloth/gpt-oss-20b-BF16")
    assert (whole.quantisation, whole.layers) == (None, CATALOGUE.get("gpt-oss-20b").layers)


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("NousResearch/Hermes-3-Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("huihui-ai/Huihui-Qwen3.5-27B-abliterated", "Qwen/Qwen3.5-27B"),
        ("unsloth/Qwen3.6-35B-A3B-NVFP4-Fast", "Qwen/Qwen3.6-35B-A3B"),
        ("prithivMLmods/Qwen3-8B-CoT-FP8-v2", "Qwen/Qwen3-8B"),
    ],
)
def test_a_fine_tune_that_holds_the_name_of_its_base_has_its_layers(name: str, base: str) -> None:
    model = resolve_model(name)
    assert model.layers == CATALOGUE.get(base).layers
    assert f"layers of {base}, whose name it holds" in model.assumed[0]


@pytest.mark.parametrize(
    "name",
    [
        "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B",
        "z-lab/Qwen3.6-27B-DFlash",
        "google/gemma-4-31B-it-qat-q4_0-unquantized-assistant",  # a draft of four layers
        "ManniX-ITA/Qwen3.6-27B-A3B-Coder",  # experts, of which the dense model has none
        "lmms-lab/llava-onevision-qwen2-7b-ov",
        "OpenHermes-2.5-Mistral-7B",  # of which version is not said: v0.1 alone has windows
        "nobody/Llama-3.1-8B-LoRA",
    ],
)
def test_what_has_a_model_s_name_beside_another_s_is_not_that_model(name: str) -> None:
    assert CATALOGUE.find_variant(name) is None


def test_of_several_releases_the_words_of_a_name_decide() -> None:
    """Kimi K2 Thinking is stored in INT4, K2 Instruct in fp8: 594 GB on the Hub."""
    thinking, instruct = CATALOGUE.get("kimi-k2-thinking"), CATALOGUE.get("kimi-k2-instruct")
    assert weigh(thinking).stored_bytes == pytest.approx(594e9, rel=0.002)
    for name, base in (("nobody/Kimi-K2-Thinking-GGUF", thinking), ("moonshotai/Kimi-K2-Base", instruct)):
        assert base.id in resolve_model(name).assumed[0]


@pytest.mark.parametrize("name", ["llama-3.1-9b", "nobody/qwen3-15b-awq"])
def test_other_names_are_refused_with_those_that_are_near(name: str) -> None:
    with pytest.raises(KvtoolError, match="did you mean") as refused:
        resolve_model(name)
    assert "\n" not in str(refused.value)


def test_every_name_of_the_catalogue_finds_its_own_entry_as_a_variant_or_none() -> None:
    """The core of a name never leads to a model of other layers."""
    for entry in CATALOGUE.entries():
        for name in entry.names():
            found = CATALOGUE.find_variant(name)
            assert found is None or found.layers == entry.model().layers, name


def test_a_name_is_taken_apart() -> None:
    parts = take_apart("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8")
    assert (parts.core, parts.stored, parts.ollama) == (("llama", "3.1", "8", "b"), ("w8a8",), False)


def test_towers_and_draft_layers_of_a_variant_stay_whole() -> None:
    """Qwen2.5-VL-7B-Instruct-AWQ is 6.93 GB on the Hub: its language model in 4 bits, its tower in bf16."""
    model = CATALOGUE.find_variant("Qwen/Qwen2.5-VL-7B-Instruct-AWQ")
    assert model is not None
    assert weigh(model).stored_bytes == pytest.approx(6.93e9, rel=0.01)
    gguf = CATALOGUE.find_variant("bartowski/Qwen2.5-7B-Instruct-GGUF:Q4_K_M")
    assert gguf is not None
    assert gguf.quantisation is not None
    assert (gguf.quantisation.bits_per_weight, gguf.quantisation.whole) == (4.89, frozenset())


@pytest.mark.parametrize(
    ("name", "longest"),
    [
        ("Qwen/Qwen2.5-7B", 131_072),
        ("Qwen/Qwen2.5-7B-Instruct", 32_768),
        ("qwen2.5-7b-instruct", 32_768),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", 32_768),
        ("someone/My-Qwen2.5-7B-Instruct-tuned", 32_768),
        ("Qwen/Qwen2-7B-Instruct", 32_768),
        ("qwen2.5:7b", 32_768),
        ("Qwen/Qwen2.5-Coder-7B-Instruct-AWQ", 32_768),
        ("Qwen/Qwen2.5-7B-Instruct-1M", 1_010_000),
        ("Qwen/Qwen3-8B-Base", 32_768),
        ("qwen3:8b", 40_960),
        ("Qwen/Qwen3-8B-AWQ", 40_960),
        ("moonshotai/Kimi-K2-Instruct-0905", 262_144),
        ("qwen2.5:7b-base", 131_072),
        ("Devstral-Small-2507", 131_072),
    ],
)
def test_a_checkpoint_made_for_another_length_says_so(name: str, longest: int) -> None:
    """As in llmfit 1.1.17's copy of each repository's config: the instruct models are cut to what they learnt."""
    found = CATALOGUE.find(name) or CATALOGUE.find_variant(name)
    assert found is not None
    assert found.max_position_embeddings == longest
