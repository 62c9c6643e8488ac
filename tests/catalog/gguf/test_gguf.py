"""GGUF files written by the gguf package, read by kvtool's own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtool.catalog.checkpoint import read_header
from kvtool.catalog.decoder import Decoder
from kvtool.catalog.gguf.file import read_gguf
from kvtool.catalog.gguf.model import gguf_model
from kvtool.catalog.model import (
    CacheKind,
    FullAttention,
    GatedDeltaNet,
    KimiDeltaAttention,
    LatentAttention,
    Mamba1,
    Mamba2,
    Moe,
    SharedAttention,
    ShortConvolution,
    SlidingAttention,
)
from kvtool.system.errors import KvtoolError

BASE: dict[str, Any] = {
    "block_count": 2,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "context_length": 512,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 5000.0,
}


SSM = {"ssm__inner_size": 128, "ssm__state_size": 16, "ssm__conv_kernel": 4} | {
    "ssm__time_step_rank": 8,
    "ssm__group_count": 4,
}

MAMBA1 = {**SSM, "ssm__group_count": None}


def write(path: Path, arch: str = "llama", *, tensors: dict[str, Any] | None = None, **changes: object) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    for name, value in {**BASE, **{key.replace("__", "."): item for key, item in changes.items()}}.items():
        key = f"{arch}.{name}"
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_uint32(key, int(value))
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    writer.add_uint32("tokenizer.ggml.eos_token_id", 2)
    for name, array in ({"token_embd.weight": np.zeros((3, 64), np.float32)} if tensors is None else tensors).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_llama_file(tmp_path: Path) -> None:
    model = gguf_model(write(tmp_path / "tiny.gguf"))
    assert (model.id, model.architecture, model.attention, model.num_layers) == ("tiny", "llama", "gqa", 2)
    assert model.layers[0].cache == FullAttention(kv_heads=2, k_head_dim=16, v_head_dim=16)
    assert (model.vocab_size, model.intermediate_size, model.max_position_embeddings) == (3, 96, 512)
    assert (model.tie_word_embeddings, model.params_total, model.quantisation) == (True, 192, None)
    assert model.decoder == Decoder(
        family="llama", exact=True, norm_eps=pytest.approx(1e-5), rope_theta=5000.0, eos_token_ids=(2,)
    )


def test_a_file_of_a_vocabulary_alone_has_no_weights(tmp_path: Path) -> None:
    path = write(tmp_path / "vocab.gguf", tensors={})
    with pytest.raises(KvtoolError, match="has no tensors"):
        read_header(path)


def test_tensors_say_what_metadata_does_not(tmp_path: Path) -> None:
    names = ("token_embd.weight", "output.weight", "blk.0.attn_q.bias", "blk.0.attn_q_norm.weight")
    tensors = {name: np.zeros(64, np.float32) for name in names}
    model = gguf_model(write(tmp_path / "m.gguf", "qwen3", tensors=tensors))
    assert model.tie_word_embeddings is False
    assert model.decoder is not None
    assert (model.decoder.family, model.decoder.qkv_bias, model.decoder.qk_norm) == ("qwen3", True, True)


def test_scaled_positions_have_no_decoder(tmp_path: Path) -> None:
    scaled = {"rope_freqs.weight": np.ones(8, np.float32)}
    assert gguf_model(write(tmp_path / "m.gguf", tensors=scaled)).decoder is None
    assert gguf_model(write(tmp_path / "m.gguf", rope__dimension_count=8)).decoder is None
    assert gguf_model(write(tmp_path / "m.gguf", rope__dimension_count=16)).decoder is not None


def test_quantised_tensors_are_counted_to_the_byte(tmp_path: Path) -> None:
    blocks = gguf.quants.quantize(np.zeros((4, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    for name, value in BASE.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"llama.{name}", value)
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(tmp_path / "q.gguf")
    assert (header.weights_bytes, header.params, header.tensors[0].dtype) == (256 // 32 * 34, 256, "Q8_0")
    quantisation = gguf_model(tmp_path / "q.gguf").quantisation
    assert quantisation is not None
    assert (quantisation.method, quantisation.bits_per_weight) == ("gguf", 8.5)


def test_heads_and_windows_layer_by_layer(tmp_path: Path) -> None:
    model = gguf_model(
        write(
            tmp_path / "m.gguf",
            "gemma3",
            block_count=3,
            attention__head_count_kv=[1, 2, 4],
            attention__key_length=32,
            attention__value_length=8,
            attention__sliding_window=64,
            attention__sliding_window_pattern=[True, False, True],
        )
    )
    assert [layer.cache for layer in model.layers] == [
        SlidingAttention(kv_heads=1, k_head_dim=32, v_head_dim=8, window=64),
        FullAttention(kv_heads=2, k_head_dim=32, v_head_dim=8),
        SlidingAttention(kv_heads=4, k_head_dim=32, v_head_dim=8, window=64),
    ]


@pytest.mark.parametrize(("arch", "full"), [("gemma2", [1, 3]), ("cohere2", [3]), ("gpt-oss", [1, 3]), ("phi3", [])])
def test_windows_by_the_architectures_own_pattern(tmp_path: Path, arch: str, full: list[int]) -> None:
    model = gguf_model(write(tmp_path / "m.gguf", arch, block_count=4, attention__sliding_window=64))
    assert [i for i, layer in enumerate(model.layers) if not isinstance(layer.cache, SlidingAttention)] == full


def test_a_window_longer_than_any_context_cuts_nothing_off(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", "phi3", context_length=4096, attention__sliding_window=262144)
    assert all(type(layer.cache) is FullAttention for layer in gguf_model(path).layers)


def test_mla(tmp_path: Path) -> None:
    latent = {"attention.kv_lora_rank": 32, "rope.dimension_count": 8, "attention.key_length_mla": 24}
    keys = {name.replace(".", "__"): value for name, value in latent.items()}
    model = gguf_model(write(tmp_path / "m.gguf", "deepseek2", **keys, attention__value_length_mla=16))
    assert model.layers[0].cache == LatentAttention(
        kv_lora_rank=32, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16
    )


def test_experts(tmp_path: Path) -> None:
    model = gguf_model(write(tmp_path / "m.gguf", expert_count=8, expert_used_count=2))
    assert model.moe == Moe(num_experts=8, experts_per_token=2, intermediate_size=96)
    assert model.architecture == "mixtral"


def kept(path: Path) -> list[CacheKind | None]:
    return [layer.cache for layer in gguf_model(path).layers]


def test_pure_state_space_models(tmp_path: Path) -> None:
    no_heads = {"attention__head_count": 0, "attention__head_count_kv": None}
    mamba = write(tmp_path / "m.gguf", "mamba", **MAMBA1, **no_heads)
    assert kept(mamba) == [Mamba1(inner_dim=128, state_dim=16, conv_kernel=4)] * 2
    assert (gguf_model(mamba).num_heads, gguf_model(mamba).attention) == (0, "mamba")
    state = Mamba2(heads=8, head_dim=16, state_dim=16, groups=4, conv_kernel=4)
    assert kept(write(tmp_path / "m2.gguf", "mamba2", **SSM, **no_heads)) == [state] * 2


def test_hybrids_are_recurrent_where_they_have_no_kv_heads(tmp_path: Path) -> None:
    full = FullAttention(kv_heads=2, k_head_dim=16, v_head_dim=16)
    kv_heads = {"block_count": 4, "attention__head_count_kv": [0, 2, 0, 0]}
    mamba1, mamba2 = (
        Mamba1(inner_dim=128, state_dim=16, conv_kernel=4),
        Mamba2(heads=8, head_dim=16, state_dim=16, groups=4, conv_kernel=4),
    )
    assert kept(write(tmp_path / "j.gguf", "jamba", **MAMBA1, **kv_heads)) == [mamba1, full, mamba1, mamba1]
    assert kept(write(tmp_path / "g.gguf", "granitehybrid", **SSM, **kv_heads)) == [mamba2, full, mamba2, mamba2]
    widths = {"feed_forward_length": [0, 0, 96, 0]}
    assert kept(write(tmp_path / "n.gguf", "nemotron_h", **SSM, **kv_heads, **widths)) == [mamba2, full, None, mamba2]
    conv = ShortConvolution(dim=64, conv_kernel=3)
    assert kept(write(tmp_path / "l.gguf", "lfm2", shortconv__l_cache=3, **kv_heads)) == [conv, full, conv, conv]


def test_gated_delta_nets_but_every_nth(tmp_path: Path) -> None:
    state = GatedDeltaNet(key_heads=4, value_heads=8, key_head_dim=16, value_head_dim=16, conv_kernel=4)
    full = FullAttention(kv_heads=2, k_head_dim=16, v_head_dim=16)
    assert kept(write(tmp_path / "d.gguf", "qwen3next", block_count=8, **SSM)) == [state, state, state, full] * 2
    every_2 = write(tmp_path / "e.gguf", "qwen35", block_count=4, full_attention_interval=2, **SSM)
    assert kept(every_2) == [state, full] * 2


def test_kimi_linear(tmp_path: Path) -> None:
    mla = {"attention__kv_lora_rank": 32, "rope__dimension_count": 8, "attention__key_length_mla": 24}
    path = write(
        tmp_path / "k.gguf",
        "kimi-linear",
        **mla,
        attention__value_length_mla=16,
        attention__head_count_kv=[0, 4],
        kda__head_dim=16,
        ssm__conv_kernel=4,
    )
    latent = LatentAttention(kv_lora_rank=32, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16)
    assert kept(path) == [KimiDeltaAttention(heads=4, head_dim=16, conv_kernel=4), latent]


def test_sliding_layers_may_have_other_heads_and_the_last_layers_share(tmp_path: Path) -> None:
    path = write(
        tmp_path / "g.gguf",
        "gemma4",
        block_count=4,
        attention__head_count_kv=[2, 1, 2, 1],
        attention__key_length=32,
        attention__value_length=32,
        attention__key_length_swa=16,
        attention__value_length_swa=16,
        attention__sliding_window=64,
        attention__sliding_window_pattern=[True, False, True, False],
        attention__shared_kv_layers=2,
    )
    assert kept(path) == [
        SlidingAttention(kv_heads=2, k_head_dim=16, v_head_dim=16, window=64),
        FullAttention(kv_heads=1, k_head_dim=32, v_head_dim=32),
        SharedAttention(source_layer=0),
        SharedAttention(source_layer=1),
    ]


@pytest.mark.parametrize(
    ("arch", "changes", "message"),
    [
        ("t5", {}, "architecture 't5' is not known"),
        ("falcon-h1", {}, "architecture 'falcon-h1' is not known"),
        ("mamba", {}, "field 'ssm.inner_size' is missing"),
        ("mamba2", {**SSM, "ssm__time_step_rank": 5}, "'ssm.inner_size' 128 does not divide into 5 heads"),
        ("nemotron_h", {**SSM, "attention__head_count_kv": [0, 2]}, "does not say which layers are an MLP"),
        ("gemma3n", {"attention__sliding_window": 64}, "field 'attention.shared_kv_layers' is missing"),
        ("llama", {"attention__head_count_kv": [2, 0]}, "'attention.head_count_kv' is 0 in layer 1"),
        ("llama", {"block_count": None}, "field 'block_count' is missing"),
        ("llama", {"attention__head_count_kv": 3}, "4 attention heads do not divide among 3"),
        ("llama", {"block_count": 3, "attention__head_count_kv": [2, 2]}, "has 2 items, but there are 3 layers"),
        ("llama", {"attention__sliding_window": 64}, "is set, but not which layers have it"),
        ("llama", {"attention__shared_kv_layers": 1}, "field 'attention.shared_kv_layers' is not known"),
        ("llama", {"ssm__state_size": 16}, "field 'ssm.state_size' is not known"),
        ("gemma2", {}, "'attention.sliding_window' is missing"),
        ("gemma2", {"attention__sliding_window": 64, "attention__sliding_window_pattern": [True]}, "has 1 items for 2"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path: Path, arch: str, changes: dict[str, object], message: str) -> None:
    path = write(tmp_path / "m.gguf", arch, **changes)
    with pytest.raises(KvtoolError) as refused:
        gguf_model(path)
    assert message in str(refused.value)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"GGUF", "is truncated or not a GGUF file"),
        (b"GGML" + bytes(60), "is not a GGUF file"),
        (b"GGUF" + (9).to_bytes(4, "little") + bytes(60), "is GGUF version 9"),
        (b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 16, "is truncated or corrupt"),
    ],
)
def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(KvtoolError, match=message):
        read_gguf(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KvtoolError, match="cannot read"):
        read_gguf(tmp_path / "none.gguf")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_is_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    arch, changes = data.draw(
        st.sampled_from([("llama", {}), ("jamba", {**MAMBA1, "attention__head_count_kv": [0, 2]})])
    )
    path = write(tmp_path_factory.mktemp("damaged") / "m.gguf", arch, **changes)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        gguf_model(path)
    except KvtoolError as error:
        message = str(error)
    else:
        return
    assert "\n" not in message
