from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from kvtool.catalog.hf_config import model_from_config, read_config
from kvtool.catalog.model import FullAttention, Model, SlidingAttention
from kvtool.catalog.models_yaml import load_catalogue
from kvtool.system.errors import KvtoolError
from tests.catalog.data import CONFIGS, LLAMA, config

CATALOGUE = load_catalogue()
# Configs whose catalogue entry goes by another name.
OTHER_NAMES = {
    "google--gemma-4-26B-A4B": "google/gemma-4-26B-A4B-it",
    "nvidia--Qwen3.5-122B-A10B-NVFP4": "Qwen/Qwen3.5-122B-A10B",
    "nvidia--Gemma-4-31B-IT-NVFP4": "google/gemma-4-31B-it",
    "google--gemma-4-12B-it-w4a16": "google/gemma-4-12B-it",
}
NOT_CATALOGUED = {
    "apple--OpenELM-270M": ("gqa", 16),
}  # fmt: skip


def read(values: dict[str, Any]) -> Model:
    return model_from_config(values, id="test", source="config.json")


def llama(**changes: object) -> dict[str, Any]:
    return {**LLAMA, **changes}


def _catalogued(path: Path) -> Model | None:
    name = OTHER_NAMES.get(path.stem) or path.stem.replace("--", "/").removesuffix("-FP8")
    return CATALOGUE.find(name)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_config_has_the_layers_of_its_catalogue_entry(path: Path) -> None:
    model = read_config(path)
    known = _catalogued(path)
    if known is None:
        assert (model.attention, model.num_layers) == NOT_CATALOGUED[path.stem]
        return
    assert model.layers == known.layers
    assert (model.attention, model.hidden_size, model.num_heads) == (
        known.attention,
        known.hidden_size,
        known.num_heads,
    )
    assert model.vocab_size == known.vocab_size
    if known.moe is not None and model.moe is not None:
        assert (model.moe.num_experts, model.moe.intermediate_size) == (
            known.moe.num_experts,
            known.moe.intermediate_size,
        )
        assert model.moe.first_dense_layers == known.moe.first_dense_layers
        assert model.moe.shared_intermediate_size == known.moe.shared_intermediate_size


def test_plain_config() -> None:
    model = read(llama(torch_dtype="bfloat16", max_position_embeddings=512))
    assert model.layers[0].cache == FullAttention(kv_heads=2, k_head_dim=16, v_head_dim=16)
    assert (model.num_layers, model.attention, model.dtype) == (4, "gqa", "bfloat16")
    assert (model.tie_word_embeddings, model.max_position_embeddings, model.architecture) == (False, 512, "llama")


def test_type_is_found_from_the_class_where_model_type_is_missing() -> None:
    values = llama(architectures=["LlamaForCausalLM"])
    del values["model_type"]
    assert read(values).architecture == "llama"
    values["architectures"] = ["SomethingForCausalLM"]
    with pytest.raises(KvtoolError, match="field 'model_type' is missing"):
        read(values)


@pytest.mark.parametrize("field", ["num_hidden_layers", "num_attention_heads", "hidden_size"])
def test_a_missing_field_is_named(field: str) -> None:
    values = llama()
    del values[field]
    with pytest.raises(KvtoolError, match=f"field '{field}' is missing"):
        read(values)


def test_a_default_that_is_another_models_shape_does_not_fill_in() -> None:
    values = llama(model_type="qwen3", head_dim=16)
    del values["num_key_value_heads"]
    with pytest.raises(KvtoolError, match="field 'num_key_value_heads' is missing"):
        read(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "4 attention heads do not divide among 3 key-value heads"),
        ({"num_key_value_heads": 8}, "4 attention heads do not divide among 8"),
        ({"hidden_size": 66}, "hidden_size 66 is not divisible by 4 heads, and no head_dim is given"),
        ({"num_hidden_layers": 0}, "field 'num_hidden_layers' is 0: must be from 1"),
        ({"num_hidden_layers": -4}, "is -4: must be from 1"),
        ({"num_hidden_layers": 10**9}, "must be from 1 to 4096"),
        ({"num_hidden_layers": 10**5000}, "is a huge number"),
        ({"num_hidden_layers": True}, "is True: a whole number is needed"),
        ({"num_hidden_layers": 4.0}, "is 4.0: a whole number is needed"),
        ({"num_hidden_layers": "4"}, "is '4': a whole number is needed"),
        ({"n_layer": 5}, "'num_hidden_layers' is 4 but 'n_layer' is 5"),
        ({"hidden_size": [64]}, "a whole number is needed"),
        ({"vocab_size": -1}, "field 'vocab_size' is -1"),
        ({"torch_dtype": "int7"}, "dtype 'int7' is not known"),
        ({"tie_word_embeddings": "yes"}, "true or false is needed"),
        ({"rms_norm_eps": float("nan")}, "a finite number is needed"),
        ({"rope_theta": float("inf")}, "a finite number is needed"),
        ({"rope_theta": 10**400}, "a finite number is needed"),
        ({"model_type": 7}, "field 'model_type' is 7: a string is needed"),
        ({"rope_scaling": "yarn"}, "an object is needed"),
        ({"architectures": ["DeepseekV3ForCausalLM"]}, "'architectures' names a class of 'deepseek_v3'"),
        ({"architectures": ["Gemma3ForConditionalGeneration"]}, "'architectures' names a class of 'gemma3'"),
    ],
)
def test_a_wrong_or_contradictory_value_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(KvtoolError) as refused:
        read(llama(**changes))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("DeepSeek-V3", {"qk_head_dim": 200}, "'qk_head_dim' is not qk_nope_head_dim + qk_rope_head_dim (192)"),
        ("Qwen3-Next-80B-A3B-Instruct", {"linear_num_value_heads": 24}, "24 does not divide among 16"),
        ("Nemotron-Nano-9B-v2", {"n_groups": 7}, "128 state heads do not divide among 7 n_groups"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(name: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(KvtoolError) as refused:
        read({**config(name), **changes})
    assert message in str(refused.value)


@pytest.mark.parametrize("name", ["LlamaForSequenceClassification", "YiForCausalLM", "NobodysForCausalLM"])
def test_a_class_that_is_read_alike_or_not_known_says_nothing_else(name: str) -> None:
    assert read(llama(architectures=[name])).layers == read(llama()).layers


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sliding_window", 4096),
        ("layer_types", ["full_attention"] * 4),
        ("kv_lora_rank", 512),
        ("attention_chunk_size", 8192),
        ("index_topk", 2048),
        ("mamba_d_state", 16),
        ("ssm_state_size", 16),
        ("linear_num_key_heads", 4),
        ("conv_kernel", 4),
        ("num_kv_shared_layers", 2),
        ("cla_share_factor", 2),
        ("cross_attention_layers", [1]),
        ("hybrid_override_pattern", "M*"),
        ("block_types", ["recurrent"]),
        ("attention_types", [[["global", "local"], 2]]),
        ("sparse_config", {"topk": 4}),
        ("compress_ratios", [4, 4]),
        ("local_attention", 128),
        ("swa_num_key_value_heads", 2),
        ("v_head_dim", 8),
        ("attn_layer_period", 8),
        ("num_memory_tokens", 4),
        ("attention_sinks", 4),
        ("per_layer_config", {"1": {"head_dim": 8}}),
        ("state_size", 16),
    ],
)
def test_a_set_field_that_may_change_the_cache_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(KvtoolError, match=f"field '{field}' is not known for this architecture") as refused:
        read(llama(**{field: value}))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"sliding_window": None, "use_sliding_window": False, "layer_types": []},
        {"output_hidden_states": True, "chunk_size_feed_forward": 0, "encoder_no_repeat_ngram_size": 0},
        {"rope_local_base_freq": 10000.0, "pretraining_tp": 1, "num_beam_groups": 1, "is_decoder": True},
        {"eos_token_id": [1, 2], "decoder_start_token_id": 3, "unsloth_version": "2025.1", "auto_map": {"a": "b"}},
        {"is_encoder_decoder": False, "add_cross_attention": False, "cross_attention_hidden_size": None},
    ],
)
def test_fields_that_are_off_or_have_nothing_to_do_with_the_cache_pass(fields: dict[str, object]) -> None:
    assert read(llama(**fields)).layers == read(llama()).layers


@pytest.mark.parametrize("field", ["is_encoder_decoder", "add_cross_attention", "use_bidirectional_attention"])
def test_models_without_a_causal_cache_of_their_own_are_refused(field: str) -> None:
    with pytest.raises(KvtoolError, match=field):
        read(llama(**{field: True}))


@pytest.mark.parametrize(
    "model_type",
    [
        "led",
        "prophetnet",
        "rwkv",
        "deepseek_v5",
        "xlstm",
        "lama",
    ],
)
def test_an_unknown_type_is_refused_however_plain_it_looks(model_type: str) -> None:
    with pytest.raises(KvtoolError, match=f"model_type '{model_type}' is not known"):
        read(llama(model_type=model_type))


def test_a_near_miss_gets_a_suggestion() -> None:
    with pytest.raises(KvtoolError, match=r"did you mean .*qwen3"):
        read(llama(model_type="qwen_3"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[1]", "its JSON is not an object"),
        (b"null", "its JSON is not an object"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"{}", "field 'model_type' is missing"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(KvtoolError) as refused:
        read_config(path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400 + len(str(path))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KvtoolError, match=r"cannot read .*config\.json"):
        read_config(tmp_path / "config.json")


def test_id_is_the_folders_name_or_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    for name in ("config.json", "other.json"):
        (folder / name).write_text(json.dumps(LLAMA))
    assert read_config(folder / "config.json").id == "my-model"
    assert read_config(folder / "other.json").id == "other"


# --- nested configs --------------------------------------------------------------------------------------------------


def test_a_multimodal_config_gives_its_text_model() -> None:
    model = read({"model_type": "llava", "text_config": llama(), "vision_config": {"hidden_size": 99}})
    assert (model.hidden_size, model.architecture) == (64, "llama")


def test_what_a_text_config_leaves_out_is_its_classs_default() -> None:
    """The published google/gemma-3-4b-it gives five sizes; heads, KV heads and head_dim are Gemma3TextConfig's."""
    text = {"model_type": "gemma3_text", "num_hidden_layers": 34, "hidden_size": 2560, "intermediate_size": 10240}
    text["sliding_window"] = 1024
    model = read({"model_type": "gemma3", "text_config": text, "vision_config": {}})
    assert model.layers == CATALOGUE.get("gemma-3-4b").layers
    assert (model.num_heads, model.vocab_size, model.tie_word_embeddings) == (8, 262208, True)


def test_a_text_config_of_nothing_but_its_type_is_the_class() -> None:
    """llava-hf/llava-1.5-7b-hf: a Llama of 32 layers with 32 heads of 128."""
    model = read({"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064}})
    assert (model.num_layers, model.attention, model.vocab_size) == (32, "mha", 32064)


def test_wrappers_may_name_no_type_or_nest_twice() -> None:
    assert read({"model_type": "mistral3", "text_config": llama(model_type=None)}).architecture == "mistral"
    inner = {"model_type": "qwen2_5_omni_thinker", "text_config": llama(model_type="qwen2_5_omni_text")}
    assert read({"model_type": "qwen2_5_omni", "thinker_config": inner}).architecture == "qwen2_5_omni_text"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "mystery_vl", "text_config": LLAMA}, "model_type 'mystery_vl' is not known"),
        ({"model_type": "llava"}, "field 'text_config' is missing"),
        ({**LLAMA, "text_config": LLAMA}, "model_type 'llama' is a text model, yet the config nests another one"),
        (
            {"model_type": "llava", "text_config": {"model_type": "bert"}},
            "text_config: model_type 'bert' is an encoder without a decoder",
        ),
        ({"model_type": "internvl_chat", "llm_config": {}}, "field 'model_type' is missing"),
    ],
)
def test_unknown_wrappers_and_texts_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        read(values)


def test_tied_embeddings_and_quantisation_may_stand_outside() -> None:
    outside = {"tie_word_embeddings": True, "torch_dtype": "float16", "quantization_config": {"quant_method": "fp8"}}
    model = read({"model_type": "llava", "text_config": llama(), **outside})
    assert (model.tie_word_embeddings, model.dtype) == (True, "float16")
    assert model.quantisation is not None
    assert model.quantisation.method == "fp8"


# --- what is remembered ----------------------------------------------------------------------------------------------


def test_published_nvfp4_checkpoint() -> None:
    model = read(config("Qwen3.5-122B-A10B-NVFP4"))
    assert model.quantisation is not None
    assert (model.quantisation.method, model.quantisation.bits_per_weight) == ("modelopt", 4.5)
    assert model.quantisation.whole == {"mixers", "dense", "beyond"}
    assert model.recurrent_state_dtype == "float32"


def test_modelopts_own_file_beside_a_config_counts(tmp_path: Path) -> None:
    """nvidia/DeepSeek-V3.1-NVFP4 has its quantisation in hf_quant_config.json only."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    quantisation = read_config(tmp_path / "config.json").quantisation
    assert quantisation is not None
    assert (quantisation.method, quantisation.bits_per_weight) == ("modelopt", 4.5)
    (tmp_path / "hf_quant_config.json").write_text("[]")
    with pytest.raises(KvtoolError, match=r"hf_quant_config\.json is not a config"):
        read_config(tmp_path / "config.json")


def test_windows_of_gpt_oss() -> None:
    model = read(config("gpt-oss-120b"))
    assert isinstance(model.layers[0].cache, SlidingAttention)
    assert model.layers[0].cache.window == 128


def test_recursion_is_bounded() -> None:
    values: dict[str, Any] = llama()
    for _ in range(sys.getrecursionlimit()):
        values = {"model_type": "llava", "text_config": values}
    with pytest.raises((KvtoolError, RecursionError)):
        read(values)
