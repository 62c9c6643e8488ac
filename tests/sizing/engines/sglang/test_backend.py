from __future__ import annotations

import pytest

from kvtool.catalog.gpus import find_gpu
from kvtool.catalog.resolve import resolve_model
from kvtool.sizing.engines.sglang.backend import choose_backend
from kvtool.sizing.engines.sglang.refusal import RefusedError

# Sources: sglang 0.5.23, srt/arg_groups/overrides.py (page and dtype defaults, DSA backends),
# model_override_base.py (get_default_attn_backend) and model_overrides/*.py.
DEFAULTS = [
    ("llama-3.1-8b", "h100", "fa3", 1, "bf16"),
    ("llama-3.1-8b", "b200", "trtllm_mha", 64, "bf16"),
    ("llama-3.1-8b", "rtx-5090", "flashinfer", 1, "bf16"),
    ("llama-3.1-8b", "mi300x", "aiter", 1, "bf16"),
    ("gpt-oss-120b", "a100", "triton", 1, "bf16"),
    ("gemma-4-26b-a4b", "h100", "triton", 1, "bf16"),
    ("deepseek-v3", "h200", "fa3", 1, "bf16"),
    ("deepseek-v3", "b200", "trtllm_mla", 64, "bf16"),
    ("deepseek-v2-lite", "b200", "flashinfer", 1, "bf16"),
    ("deepseek-v3.2", "h200", "dsa", 64, "bf16"),
    ("deepseek-v3.2", "b200", "dsa", 64, "fp8"),
    ("glm-5.1", "b300", "dsa", 64, "fp8"),
    ("minimax-m3", "h100", "fa3", 128, "bf16"),
    ("minimax-m3", "b200", "fa4", 128, "bf16"),
    ("qwen3-next-80b-a3b-instruct", "b200", "trtllm_mha", 64, "bf16"),
]


@pytest.mark.parametrize(("name", "card", "attention", "page", "dtype"), DEFAULTS)
def test_defaults_by_card(name: str, card: str, attention: str, page: int, dtype: str) -> None:
    backend = choose_backend(resolve_model(name), find_gpu(card), cache_dtype="auto", page_size=None)
    assert (backend.attention, backend.page_size, backend.cache_dtype) == (attention, page, dtype)


@pytest.mark.parametrize(("asked", "page"), [(32, 32), (128, 128), (8, 64), (None, 64)])
def test_trtllm_takes_some_pages_only(asked: int | None, page: int) -> None:
    llama = resolve_model("llama-3.1-8b")
    assert choose_backend(llama, find_gpu("b200"), cache_dtype="auto", page_size=asked).page_size == page
    assert choose_backend(llama, find_gpu("h100"), cache_dtype="auto", page_size=asked).page_size == (asked or 1)


def test_scales_of_sparse_mla_rows() -> None:
    v32, glm, v3 = (resolve_model(name) for name in ("deepseek-v3.2", "glm-5.1", "deepseek-v3"))
    scaled = {
        (model.id, card): choose_backend(model, find_gpu(card), cache_dtype="fp8", page_size=None).scaled_rows
        for model in (v32, glm, v3)
        for card in ("h200", "b200", "rtx-pro-6000-blackwell", "mi300x")
    }
    assert {key for key, value in scaled.items() if value} == {
        (v32.id, "h200"),
        (glm.id, "h200"),
        (glm.id, "rtx-pro-6000-blackwell"),
    }


@pytest.mark.parametrize(
    ("name", "card", "dtype", "words"),
    [
        ("llama-3.1-8b", "gaudi3", "auto", "not on Gaudi3-128GB"),
        ("llama-3.1-8b", "h100", "int8", "no int8 KV cache"),
        ("deepseek-v3.2", "h100", "fp8_e5m2", "not in fp8_e5m2"),
    ],
)
def test_what_is_refused(name: str, card: str, dtype: str, words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        choose_backend(resolve_model(name), find_gpu(card), cache_dtype=dtype, page_size=None)
