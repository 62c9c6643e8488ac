from __future__ import annotations

import pytest

from kvtool.errors import KvtoolError
from kvtool.sizing.dtypes import CACHE_FORMATS, parse_cache_format, parse_float_dtype, parse_weight_dtype


@pytest.mark.parametrize(
    ("name", "vector_bytes"),
    [
        ("fp32", 512),
        ("bf16", 256),
        ("fp16", 256),
        ("fp8", 128),
        ("fp8_e4m3", 128),
        ("fp8_e5m2", 128),
        ("int8", 128),
        # vLLM's triton_attn backend keeps an fp32 scale beside each head's vector: 2d + 2 x 4 for K and V together.
        ("fp8_per_token_head", 132),
        ("int8_per_token_head", 132),
    ],
)
def test_bytes_of_a_128_element_vector(name: str, vector_bytes: int) -> None:
    assert parse_cache_format(name).vector_bytes(128) == vector_bytes


def test_an_absent_vector_has_no_scale() -> None:
    assert all(cache_format.vector_bytes(0) == 0 for cache_format in CACHE_FORMATS.values())


@pytest.mark.parametrize(
    ("model_dtype", "name"), [("bfloat16", "bf16"), ("torch.float16", "fp16"), ("float32", "fp32"), (None, "bf16")]
)
def test_auto_is_the_dtype_of_the_model(model_dtype: str | None, name: str) -> None:
    assert parse_cache_format("auto", model_dtype).name == name


def test_unknown_names_are_refused_with_the_list() -> None:
    with pytest.raises(KvtoolError, match=r"'fp9': use one of auto, fp32, bf16, fp16, fp8, .*int8_per_token_head"):
        parse_cache_format("fp9")
    with pytest.raises(KvtoolError, match=r"unknown state dtype 'fp8': use one of auto, fp32, bf16, fp16"):
        parse_float_dtype("fp8", "state dtype")
    with pytest.raises(KvtoolError, match=r"unknown weight dtype 'int3'.*int4"):
        parse_weight_dtype("int3")
