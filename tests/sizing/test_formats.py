from __future__ import annotations

from dataclasses import replace

import pytest

from kvtool.catalog.model import FullAttention, GatedDeltaNet, Layer, Model
from kvtool.sizing.formats import CACHE_FORMATS, parse_cache_format
from kvtool.sizing.layers import layer_specs
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.size import size
from kvtool.sizing.specs import FullSpec, LatentSpec
from kvtool.system.errors import KvtoolError
from tests.sizing.example import DEEPSEEK_V3, DEEPSEEK_V4, DEEPSEEK_V32, LLAMA_8B, QWEN3_NEXT


@pytest.mark.parametrize(
    ("name", "key_and_value"),
    [
        ("fp32", 1024),
        ("bf16", 512),
        ("fp16", 512),
        ("fp8", 256),
        ("fp8_e4m3", 256),
        ("fp8_e5m2", 256),
        ("fp8_plain", 256),
        ("int8", 256),
        # vLLM's triton_attn.customize_spec: an inline fp32 scale for each head's K and V.
        ("fp8_per_token_head", 264),
        ("int8_per_token_head", 264),
        ("int4_per_token_head", 136),
        # vLLM's nvfp4_kv_cache_full_dim: d / 2 + d / 16 each; SGLang's mxfp8 pool: one scale byte for 32.
        ("nvfp4", 144),
        ("nvfp4_4over6", 144),
        ("mxfp8", 264),
        # vLLM's TurboQuantConfig.slot_size_aligned and ultraquant's slot layout.
        ("turboquant_k8v4", 196),
        ("turboquant_4bit_nc", 134),
        ("turboquant_k3v4_nc", 118),
        ("turboquant_3bit_nc", 102),
        ("ultraquant_4bit", 136),
        # transformers' QuantizedCache: 4 or 2 bits, and two fp16 values for each group of 64.
        ("int4", 144),
        ("kivi_int4", 144),
        ("kivi_int2", 80),
        # ggml's blocks of 32: 34, 24, 22, 20 and 18 bytes.
        ("q8_0", 272),
        ("q5_1", 192),
        ("q5_0", 176),
        ("q4_1", 160),
        ("q4_0", 144),
        ("iq4_nl", 144),
    ],
)
def test_bytes_of_k_and_v_of_128_elements(name: str, key_and_value: int) -> None:
    assert parse_cache_format(name).head_bytes(128, 128) == key_and_value


def test_turboquant_pads_a_slot_to_an_even_length() -> None:
    """Heads of 72: 27 + 2 of keys, 27 + 4 of values = 60; of 88: 33 + 2 + 33 + 4 = 72; of 40: 15 + 2 + 20 + 4 = 41."""
    assert parse_cache_format("turboquant_k3v4_nc").head_bytes(40, 40) == 42


@pytest.mark.parametrize(
    ("model", "name", "row_bytes"),
    [
        (DEEPSEEK_V3, "bf16", 1152),
        (DEEPSEEK_V3, "fp8", 576),
        (DEEPSEEK_V3, "fp8_ds_mla", 656),  # vLLM's flashmla_sparse: 512 fp8 + 4 fp32 scales + 64 bf16
        (DEEPSEEK_V32, "fp8", 656),
        (DEEPSEEK_V32, "fp8_plain", 576),
        (DEEPSEEK_V32, "fp8_ds_mla", 656),
        (DEEPSEEK_V32, "nvfp4_ds_mla", 352),  # the same place: 256 e2m1 + 64 fp8 + 32 e4m3 scales
        (DEEPSEEK_V3, "int8_per_token_head", 584),  # vLLM's MLACommonBackend.customize_spec: + 2 fp32 scales
        (DEEPSEEK_V3, "int4_per_token_head", 296),
        (DEEPSEEK_V3, "nvfp4", 324),  # SGLang's fp4 MLA pool: half a byte an element and a scale for 16
        (DEEPSEEK_V3, "q8_0", 612),
        (DEEPSEEK_V4, "bf16", 1024),
        (DEEPSEEK_V4, "fp8", 584),  # 448 fp8 + 7 scales + 1 of padding + 64 bf16
        (DEEPSEEK_V4, "fp8_ds_mla", 584),
        (DEEPSEEK_V4, "fp8_plain", 512),
    ],
)
def test_rows_of_mla(model: Model, name: str, row_bytes: int) -> None:
    spec = layer_specs(model, parse_cache_format(name))[0]
    assert spec.bytes_per_token == row_bytes


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        (LLAMA_8B, "fp8_ds_mla", "a fp8_ds_mla cache holds rows of MLA: this model has K and V heads"),
        (DEEPSEEK_V3, "turboquant_k8v4", "a turboquant_k8v4 cache has no rows for the MLA of this model"),
        (DEEPSEEK_V4, "nvfp4_ds_mla", "a nvfp4_ds_mla cache has no rows for the MLA of this model"),
    ],
)
def test_a_format_that_a_model_cannot_have_is_refused(model: Model, name: str, message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        layer_specs(model, parse_cache_format(name))


@pytest.mark.parametrize(("name", "size"), [("nvfp4", 24), ("mxfp8", 80), ("q4_0", 80), ("int4_per_token_head", 81)])
def test_blocks_must_be_filled(name: str, size: int) -> None:
    heads = FullAttention(kv_heads=8, k_head_dim=size, v_head_dim=size)
    with pytest.raises(KvtoolError, match=f"a {name} cache stores blocks of .* a head size of {size} does not fill"):
        layer_specs(replace(LLAMA_8B, layers=(Layer(cache=heads),)), parse_cache_format(name))


def test_an_absent_vector_has_no_scale() -> None:
    assert all(fmt.value.stored_bytes(0) == 0 for fmt in CACHE_FORMATS.values() if fmt.value is not None)


def test_kivi_keeps_the_newest_128_tokens_whole() -> None:
    """8 heads of 128: 8 x 144 B quantised, 8 x 512 B whole. A scale of keys serves 64 tokens, which leave together: of
    1000 tokens 13 groups are older than the newest 128, and 168 are whole."""
    spec = FullSpec(kv_heads=8, k_head_dim=128, v_head_dim=128, cache_format=CACHE_FORMATS["kivi_int4"])
    assert spec.stored_bytes(100) == 100 * 4096
    assert spec.stored_bytes(1000) == 832 * 1152 + 168 * 4096
    assert spec.allocated_bytes(1000, 16) == 52 * 16 * 1152 + 168 * 4096
    assert spec.fixed_bytes(16) == 128 * (4096 - 1152)
    assert spec.read_bytes(1000) == spec.stored_bytes(1000)
    assert (spec.shared_pages(128, 128, 16), spec.shared_pages(128, 1000, 16)) == (0, 8)


@pytest.mark.parametrize(
    ("name", "head_bytes", "method"),
    [
        ("q8_0/q4_0", 136 + 72, None),
        ("bf16/int4", 256 + 72, None),
        ("int4+hadamard", 144, "hadamard"),
        ("fp8+calibrated", 256, "calibrated"),
        ("int8/q4_0+hadamard", 128 + 72, "hadamard"),
    ],
)
def test_k_and_v_apart_and_how_a_cache_is_prepared(name: str, head_bytes: int, method: str | None) -> None:
    found = parse_cache_format(name)
    assert found.head_bytes(128, 128) == head_bytes
    assert (found.name, found.method) == (name, method)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("kivi_int4/bf16", "a kivi_int4 cache stores K and V together"),
        ("bf16/turboquant_k8v4", "a turboquant_k8v4 cache stores K and V together"),
        ("int4+calibrated", "a int4 cache has no scale of its own to calibrate"),
        ("int4+turned", "unknown way 'turned' to prepare a cache: use hadamard, calibrated, streaming:N or quest:N"),
        ("q8_0/nothing", "unknown KV cache dtype 'nothing'"),
    ],
)
def test_what_makes_no_sense_of_a_format_is_refused(name: str, message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        parse_cache_format(name)


def test_turboquant_leaves_two_layers_at_each_end_whole() -> None:
    """vLLM's get_boundary_skip_layers: 2 at each end, at most half of the layers, none in a hybrid."""
    turbo = parse_cache_format("turboquant_k8v4")
    assert [s.bytes_per_token for s in layer_specs(LLAMA_8B, turbo)] == [4096] * 2 + [8 * 196] * 28 + [4096] * 2
    assert [s.bytes_per_token for s in layer_specs(replace(LLAMA_8B, layers=LLAMA_8B.layers[:3]), turbo)] == [
        4096,
        8 * 196,
        4096,
    ]
    hybrid = [s for s in layer_specs(QWEN3_NEXT, turbo) if isinstance(s, FullSpec)]
    assert {s.bytes_per_token for s in hybrid} == {2 * (256 + 128 + 4)}
    assert isinstance(QWEN3_NEXT.layers[0].cache, GatedDeltaNet)


@pytest.mark.parametrize(
    ("model_dtype", "name"), [("bfloat16", "bf16"), ("torch.float16", "fp16"), ("float32", "fp32"), (None, "bf16")]
)
def test_auto_is_the_dtype_of_the_model(model_dtype: str | None, name: str) -> None:
    assert parse_cache_format("auto", model_dtype).name == name


def test_unknown_names_are_refused_with_the_list() -> None:
    with pytest.raises(KvtoolError, match=r"'fp9': use one of auto, fp32, bf16, fp16, fp8, .*int8_per_token_head"):
        parse_cache_format("fp9")


def test_sparse_mla_reads_its_top_k() -> None:
    spec = LatentSpec(
        kv_lora_rank=512, qk_rope_head_dim=64, cache_format=CACHE_FORMATS["fp8"], sparse=True, top_k_tokens=2048
    )
    assert spec.read_bytes(100_000) == 2048 * 656


@pytest.mark.parametrize(("dtype", "key_bytes"), [("auto", 132), ("fp8", 132), ("fp4", 68), ("bf16", 256)])
def test_index_keys_have_a_dtype_of_their_own(dtype: str, key_bytes: int) -> None:
    """vLLM's DeepseekV32IndexerCache: 128 + 4; DeepSeek-V4's fp4 cache: 64 + 128 / 32."""
    options = SizeOptions(contexts=(8192,), kv_cache_dtypes=("fp8",), index_dtype=dtype)
    assert size(DEEPSEEK_V32, options=options).rows[0].kv.indexer_bytes_per_token == 61 * key_bytes


def test_an_index_dtype_needs_an_indexer_and_a_name() -> None:
    with pytest.raises(KvtoolError, match="--index-dtype fp4 means nothing for llama-8b"):
        size(LLAMA_8B, options=SizeOptions(index_dtype="fp4"))
    with pytest.raises(KvtoolError, match="unknown index dtype 'int4': use one of auto, bf16, fp8, fp4"):
        size(DEEPSEEK_V32, options=SizeOptions(index_dtype="int4"))


@pytest.mark.parametrize(
    ("model", "name", "bits"),
    [
        (LLAMA_8B, "bf16", 16),
        (LLAMA_8B, "nvfp4", 4.5),
        (LLAMA_8B, "fp8_per_token_head", 8.25),
        (LLAMA_8B, "q8_0", 8.5),
        (DEEPSEEK_V32, "fp8", 656 * 8 / 576),
        (DEEPSEEK_V32, "nvfp4_ds_mla", 352 * 8 / 576),
    ],
)
def test_bits_an_element_count_scales(model: Model, name: str, bits: float) -> None:
    row = size(model, options=SizeOptions(contexts=(8192,), kv_cache_dtypes=(name,))).rows[0]
    assert row.layers[0].bits_per_element == bits


def test_what_stays_whole_is_said() -> None:
    def said(name: str) -> str:
        return "\n".join(size(LLAMA_8B, options=SizeOptions(contexts=(8192,), kv_cache_dtypes=(name,))).assumptions)

    assert "the newest 128 to 191 tokens of a sequence are kept in 16 bits" in said("kivi_int4")
    assert "the outermost 4 layers keep the model's dtype" in said("turboquant_k8v4")
