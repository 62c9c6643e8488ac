"""Readers of one architecture each: names of its own for heads, latents and states."""

from __future__ import annotations

from typing import Any

import pytest

from kvtool.catalog.hf_config import model_from_config
from kvtool.catalog.model import (
    FullAttention,
    LatentAttention,
    LightningAttention,
    Mamba1,
    Mamba2,
    Model,
    SharedAttention,
    ShortConvolution,
)
from kvtool.system.errors import KvtoolError
from tests.catalog.data import LLAMA, config


def read(**values: object) -> Model:
    return model_from_config(values, id="test", source="config.json")


def tiny(model_type: str, **changes: object) -> Model:
    values: dict[str, Any] = {**LLAMA, "model_type": model_type, **changes}
    return read(**{name: value for name, value in values.items() if value != "absent"})


OLD = {"num_key_value_heads": "absent"}
# Published configs that say a thing twice: gemma-2-27b, Hunyuan-A13B, falcon-40b, Qwen-7B.
TWICE: list[tuple[str, dict[str, object]]] = [
    ("gemma2", {"head_dim": 16, "sliding_window": 4096, "sliding_window_size": 4096}),
    ("hunyuan_v1_moe", {"head_dim": 16, "attention_head_dim": 16, "use_cla": False, "cla_share_factor": 2}),
    ("falcon", {"num_kv_heads": 2, "new_decoder_architecture": True, "multi_query": True}),
    ("qwen", {"num_key_value_heads": "absent", "kv_channels": 16, "max_position_embeddings": 32, "seq_length": 8}),
]
OLD_SIZES = {"n_layer": 2, "n_head": 4}
MPT = {"n_layers": 2, "d_model": 32, "n_heads": 4}
GLM = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
MLA = {"kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}


@pytest.mark.parametrize(
    ("model", "kv_heads", "head_dim"),
    [
        (read(model_type="gpt2", n_layer=2, n_embd=32, n_head=4), 4, 8),
        (read(model_type="gpt_bigcode", n_layer=2, n_embd=32, n_head=4), 1, 8),
        (read(model_type="gpt_bigcode", n_layer=2, n_embd=32, n_head=4, multi_query=False), 4, 8),
        (read(model_type="bloom", n_layer=2, n_embed=32, num_attention_heads=4), 4, 8),
        (tiny("opt", **OLD), 4, 16),
        (tiny("falcon", **OLD), 1, 16),
        (tiny("falcon", **OLD, multi_query=False), 4, 16),
        (tiny("falcon", **OLD, new_decoder_architecture=True, num_kv_heads=2), 2, 16),
        (read(model_type="RefinedWeb", **OLD_SIZES, hidden_size=32, new_decoder_architecture=True, n_head_kv=2), 2, 8),
        (read(model_type="mpt", **MPT, attn_config={}), 4, 8),
        (read(model_type="mpt", **MPT, attn_config={"attn_type": "multiquery_attention"}), 1, 8),
        (read(model_type="mpt", **MPT, attn_config={"kv_n_heads": 2}), 2, 8),
        (read(model_type="chatglm", **GLM, kv_channels=8, multi_query_attention=True, multi_query_group_num=2), 2, 8),
        (read(model_type="chatglm", **GLM, multi_query_group_num=2), 4, 8),
        (read(model_type="qwen", num_hidden_layers=2, hidden_size=32, num_attention_heads=4, kv_channels=8), 4, 8),
        (tiny("qwen3", head_dim=128), 2, 128),
        (tiny("mistral", head_dim=32, sliding_window=None), 2, 32),
    ],
)  # fmt: skip
def test_heads_under_their_many_names(model: Model, kv_heads: int, head_dim: int) -> None:
    assert {layer.cache for layer in model.layers} == {
        FullAttention(kv_heads=kv_heads, k_head_dim=head_dim, v_head_dim=head_dim)
    }


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("gpt_neox", {"num_key_value_heads": "absent", "head_dim": 32}, "'head_dim' differs from hidden_size / heads"),
        ("gpt_neox", {}, "'num_key_value_heads' is not known for this architecture"),
        ("gpt_bigcode", {}, "'num_key_value_heads' differs from the 1"),
        ("falcon", {"new_decoder_architecture": True, "num_key_value_heads": 3}, "do not divide among 3"),
        ("mpt", {}, "field 'attn_config' is missing"),
        ("mpt", {"attn_config": {"attn_type": "odd"}}, "attn_type 'odd' is not known"),
        ("mpt", {"attn_config": {"kv_n_heads": 4}}, "'num_key_value_heads' is 2, but 'attn_config' makes it 4"),
        ("dbrx", {"attn_config": {"kv_n_heads": 2}}, "field 'ffn_config' is missing"),
        ("deepseek_v3", {**MLA, "kv_lora_rank": "absent"}, "field 'kv_lora_rank' is missing"),
        ("deepseek_v3", {**MLA, "layer_types": ["sliding_attention"] * 4}, "layer type 'sliding_attention'"),
        ("deepseek_v3", {**MLA, "index_topk": 8}, "field 'index_topk' is not known"),
        ("deepseek_v32", {**MLA}, "field 'index_head_dim' is missing"),
        ("llama", MLA, "is not known for this architecture"),
        ("hunyuan_v1_moe", {"use_cla": True}, "'cla_share_factor' is missing"),
    ],
)
def test_contradictions_are_refused(model_type: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(KvtoolError) as refused:
        tiny(model_type, **changes)
    assert message in str(refused.value)


@pytest.mark.parametrize(("model_type", "changes"), TWICE)
def test_what_is_said_twice_alike_is_no_contradiction(model_type: str, changes: dict[str, object]) -> None:
    assert tiny(model_type, **changes).num_layers == 4


def test_what_is_said_twice_differently_is() -> None:
    with pytest.raises(KvtoolError, match="'sliding_window' is 4096 but 'sliding_window_size' is 512"):
        tiny("gemma2", head_dim=16, sliding_window=4096, sliding_window_size=512)
    with pytest.raises(KvtoolError, match="'head_dim' is 16 but 'attention_head_dim' is 32"):
        tiny("hunyuan_v1_moe", head_dim=16, attention_head_dim=32)


def block(**attention: object) -> dict[str, Any]:
    return {"attention": {"n_heads_in_group": 2, "no_op": False, "replace_with_linear": False, **attention}}


def test_searched_blocks_have_heads_of_their_own_or_none() -> None:
    """nvidia/Llama-3_3-Nemotron-Super-49B-v1: 49 of 80 layers kept their attention."""
    blocks = [block(), block(n_heads_in_group=4), block(no_op=True), block(replace_with_linear=True)]
    layers = tiny("nemotron-nas", num_key_value_heads=None, block_configs=blocks).layers
    caches = [layer.cache for layer in layers]
    assert [cache and cache.kv_heads for cache in caches] == [2, 1, None, None]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([block()] * 3, "'block_configs' has 3 items, but there are 4 layers"),
        ([{}] * 4, "block_configs[0]: field 'attention' is missing"),
        ([block(window_length=8)] * 4, "field 'window_length' is 8: it is not known here"),
        ([block(n_heads_in_group=3)] * 4, "do not divide into groups of 3"),
        ([1, 2, 3, 4], "a list of objects is needed"),
    ],
)
def test_searched_blocks_that_are_not_known_are_refused(blocks: list[Any], message: str) -> None:
    with pytest.raises(KvtoolError) as refused:
        tiny("nemotron-nas", num_key_value_heads=None, block_configs=blocks)
    assert message in str(refused.value)


def test_minimax_m2_must_be_softmax_throughout() -> None:
    assert tiny("minimax_m2", head_dim=16, attn_type_list=[1, 1, 1, 1]).attention == "gqa"
    with pytest.raises(KvtoolError, match="not softmax attention"):
        tiny("minimax_m2", head_dim=16, attn_type_list=[1, 0, 1, 1])


def test_cross_layer_attention_shares_with_the_first_of_each_run() -> None:
    layers = tiny("hunyuan_v1_moe", use_cla=True, cla_share_factor=2).layers
    assert [isinstance(layer.cache, SharedAttention) for layer in layers] == [False, True, False, True]
    assert layers[3].cache == SharedAttention(source_layer=2)
    assert tiny("hunyuan_v1_moe", use_cla=False, cla_share_factor=2).layers[1] == layers[0]


# --- latents and indexers --------------------------------------------------------------------------------------------


def test_mla_keeps_its_latent_whatever_head_dim_says() -> None:
    model = tiny("deepseek_v3", **MLA, head_dim=72, q_lora_rank=24)
    assert model.attention == "mla"
    assert model.layers[0].cache == LatentAttention(
        kv_lora_rank=32, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16, q_lora_rank=24
    )
    assert tiny("minicpm3", **MLA).attention == "mla"


def test_longcat_has_two_latents_a_layer() -> None:
    assert tiny("longcat_flash", **MLA, num_hidden_layers="absent", num_layers=3).num_layers == 6


INDEX = {**MLA, "index_head_dim": 16, "index_n_heads": 4, "index_topk": 64, "num_hidden_layers": 10}


@pytest.mark.parametrize(
    ("changes", "owners"),
    [
        ({}, list(range(10))),
        ({"index_topk_freq": 4, "index_skip_topk_offset": 3}, [0, 1, 2, 6]),
        ({"index_topk_freq": 4}, [0, 1, 5, 9]),
        ({"layer_types": ["deepseek_sparse_attention"] * 10}, list(range(10))),
        ({"index_topk_pattern": "FSSFSSFSSF"}, [0, 3, 6, 9]),
        ({"indexer_types": ["full", "shared"] * 5, "index_topk_freq": 3}, [0, 2, 4, 6, 8]),
    ],
)
def test_layers_that_choose_for_themselves_keep_index_keys(changes: dict[str, object], owners: list[int]) -> None:
    layers = tiny("glm_moe_dsa", **INDEX, **changes).layers
    assert [index for index, layer in enumerate(layers) if layer.indexer] == owners


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indexer_types": ["full"] * 9}, "'indexer_types' has 9 items, but there are 10 layers"),
        ({"indexer_types": ["odd"] * 10}, "indexer type 'odd' is not known"),
        ({"index_topk_pattern": "FS"}, "'index_topk_pattern' has 2 letters"),
        ({"layer_types": ["full_attention"] * 10}, "layer type 'full_attention' is not known here"),
        ({"layer_types": ["deepseek_sparse_attention"] * 9}, "'layer_types' has 9 items"),
    ],
)
def test_schedules_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        tiny("glm_moe_dsa", **INDEX, **changes)


# --- states ----------------------------------------------------------------------------------------------------------


def test_mamba_without_attention() -> None:
    one = read(model_type="mamba", num_hidden_layers=2, hidden_size=8, expand=2, state_size=4, conv_kernel=3)
    assert (one.attention, one.num_heads) == ("mamba", 0)
    assert one.layers[0].cache == Mamba1(inner_dim=16, state_dim=4, conv_kernel=3)
    values = {"num_heads": 4, "head_dim": 4, "expand": 2, "state_size": 4, "conv_kernel": 3, "n_groups": 1}
    two = read(model_type="mamba2", num_hidden_layers=2, hidden_size=8, **values)
    assert two.layers[0].cache == Mamba2(heads=4, head_dim=4, state_dim=4, groups=1, conv_kernel=3)
    with pytest.raises(KvtoolError, match="is not expand x hidden_size"):
        read(model_type="mamba2", num_hidden_layers=2, hidden_size=8, **{**values, "num_heads": 5})


GRANITE = {"mamba_n_heads": 8, "mamba_expand": 2, "mamba_d_state": 4, "mamba_n_groups": 1, "mamba_d_conv": 4}


def test_granite_4_by_either_names() -> None:
    types = ["mamba", "attention", "mamba", "attention"]
    model = tiny("granitemoehybrid", **GRANITE, layer_types=types, mamba_d_head="auto")
    assert model.layers[0].cache == Mamba2(heads=8, head_dim=16, state_dim=4, groups=1, conv_kernel=4)
    renamed = ["linear_attention", "full_attention"] * 2
    assert tiny("granitemoehybrid", **GRANITE, layer_types=renamed).layers == model.layers
    assert tiny("granitemoehybrid", layer_types=["attention"] * 4).attention == "gqa"
    with pytest.raises(KvtoolError, match="is not mamba_expand x hidden_size"):
        tiny("granitemoehybrid", **GRANITE, layer_types=types, mamba_d_head=17)


NEMOTRON = {
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "ssm_state_size": 4,
    "n_groups": 1,
    "num_hidden_layers": "absent",
}


def test_nemotron_patterns() -> None:
    model = tiny("nemotron_h", **NEMOTRON, hybrid_override_pattern="M-*E")
    assert [type(layer.cache) for layer in model.layers] == [Mamba2, type(None), FullAttention, type(None)]
    types = ["mamba", "mlp", "attention", "moe"]
    assert tiny("nemotron_h", **NEMOTRON, layers_block_type=types).layers == model.layers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hybrid_override_pattern": "MX"}, "layer type 'X' is not known"),
        ({"hybrid_override_pattern": ""}, "'hybrid_override_pattern' (or 'layers_block_type') is missing"),
        (
            {"hybrid_override_pattern": "M*", "num_hidden_layers": 3},
            "num_hidden_layers is 3, but the layer pattern has 2",
        ),
    ],
)
def test_wrong_nemotron_patterns_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(KvtoolError) as refused:
        tiny("nemotron_h", **{**NEMOTRON, **changes})
    assert message in str(refused.value)


def test_minimax_by_flags_or_names() -> None:
    model = tiny("minimax_text_01", attn_type_list=[0, 0, 0, 1])
    assert model.layers[0].cache == LightningAttention(heads=4, head_dim=16)
    assert model.layers[3].cache == FullAttention(kv_heads=2, k_head_dim=16, v_head_dim=16)
    types = ["linear_attention"] * 3 + ["full_attention"]
    assert tiny("minimax", layer_types=types).layers == model.layers
    with pytest.raises(KvtoolError, match="says which layers are full"):
        tiny("minimax")


def test_lfm2_by_names_or_indices() -> None:
    model = tiny("lfm2", conv_L_cache=3, layer_types=["conv", "conv", "full_attention", "conv"])
    assert model.layers[0].cache == ShortConvolution(dim=64, conv_kernel=3)
    assert tiny("lfm2", conv_L_cache=3, full_attn_idxs=[2]).layers == model.layers
    with pytest.raises(KvtoolError, match="conv_dim 32 differs"):
        tiny("lfm2", conv_L_cache=3, full_attn_idxs=[2], conv_dim=32)


def test_jamba_period_and_offset() -> None:
    mamba = {"mamba_d_state": 4, "mamba_d_conv": 4, "mamba_expand": 2}
    model = tiny("jamba", **mamba, attn_layer_period=2, attn_layer_offset=1)
    assert [type(layer.cache) for layer in model.layers] == [Mamba1, FullAttention] * 2
    with pytest.raises(KvtoolError, match="'attn_layer_offset' is 2"):
        tiny("jamba", **mamba, attn_layer_period=2, attn_layer_offset=2)


def test_kimi_linear_names_each_layer_once() -> None:
    values = config("Kimi-Linear-48B-A3B-Instruct")
    values["linear_attn_config"]["full_attn_layers"] = [4, 8]
    with pytest.raises(KvtoolError, match="do not name each of the 27 layers once"):
        model_from_config(values, id="t", source="t")
