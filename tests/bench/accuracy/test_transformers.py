"""SmolLM2-135M's real weights: KL and agreement of a quantised cache, beside transformers with a cache of its own whose
layers round what they are given, written here without kvtool's kernels."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kvtool.bench.accuracy.text import read_text
from kvtool.bench.cases.accuracy import AccuracyPart, Comparison
from kvtool.bench.cases.base import Setup
from kvtool.catalog.resolve import resolve_model
from kvtool.engine.config import EngineConfig
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.text import find_tokenizer

pytestmark = pytest.mark.network

WEIGHTS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvtool-tests" / "smollm2" / "hf"
WINDOW, WINDOWS = 192, 2


def int8_by_vector(x: Tensor) -> Tensor:
    step = x.abs().amax(-1, keepdim=True) / 127
    return torch.clamp(torch.round(x / step), -127, 127) * step


def int4_by_64(x: Tensor) -> Tensor:
    """Heads of 64 are one group, whose step and minimum are kept in fp16."""
    low = x.amin(-1, keepdim=True)
    step = (x.amax(-1, keepdim=True) - low) / 15
    return torch.round((x - low) / step) * step.half().float() + low.half().float()


def e4m3(x: Tensor) -> Tensor:
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype)


def e5m2(x: Tensor) -> Tensor:
    return x.clamp(-57344, 57344).to(torch.float8_e5m2).to(x.dtype)


def int4_by_vector(x: Tensor) -> Tensor:
    step = x.abs().amax(-1, keepdim=True) / 7
    return torch.clamp(torch.round(x / step), -7, 7) * step


def turned(rounding: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """In the basis of Walsh's functions, by the recursion that defines them."""

    def walsh(x: Tensor) -> Tensor:
        if x.shape[-1] == 1:
            return x
        a, b = (walsh(half) for half in x.chunk(2, dim=-1))
        return torch.cat((a + b, a - b), dim=-1) / 2**0.5

    return lambda x: walsh(rounding(walsh(x)))


ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "int8_per_token_head": int8_by_vector,
    "int4": int4_by_64,
    "fp8": e4m3,
    "fp8_e5m2": e5m2,
    "int4_per_token_head": int4_by_vector,
    "int4_per_token_head+hadamard": turned(int4_by_vector),
}
BESIDE = ("int8",)  # of scales that are measured first: judged by the others' figures alone


def independent(windows: list[list[int]]) -> dict[str, tuple[list[float], list[float]]]:
    """KL and agreement of every token by each rounding, by transformers alone."""
    from transformers import AutoModelForCausalLM, DynamicCache
    from transformers.cache_utils import DynamicLayer

    class Rounded(DynamicLayer):
        def __init__(self, rounding: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.rounding = rounding

        def update(self, key_states: Tensor, value_states: Tensor, *more: Any, **named: Any) -> tuple[Tensor, Tensor]:
            return super().update(self.rounding(key_states), self.rounding(value_states), *more, **named)

    model = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32).eval()

    def log_chances(window: list[int], rounding: Callable[[Tensor], Tensor]) -> Tensor:
        cache = DynamicCache()
        cache.layers = [Rounded(rounding) for _ in range(model.config.num_hidden_layers)]
        with torch.inference_mode():
            return model(torch.tensor([window]), past_key_values=cache).logits[0, :-1].log_softmax(-1)

    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ROUNDINGS}
    for window in windows:
        reference = log_chances(window, lambda x: x)
        for name, rounding in ROUNDINGS.items():
            rounded = log_chances(window, rounding)
            found[name][0].extend((reference.exp() * (reference - rounded)).sum(-1).tolist())
            found[name][1].extend((reference.argmax(-1) == rounded.argmax(-1)).float().tolist())
    return found


@pytest.mark.skipif(not WEIGHTS.exists(), reason="the weights were not fetched: tests/engine/test_real_weights.py does")
def test_figures_are_those_of_transformers_within_two_standard_errors() -> None:
    config = EngineConfig(weights=str(WEIGHTS), dtype="fp32", device="cpu", threads=1)
    loaded = LoadedModel(resolve_model(str(WEIGHTS)), config, max_positions=WINDOW + 8)
    tokenizer = find_tokenizer(str(WEIGHTS))
    assert tokenizer is not None
    text = read_text(None, tokenizer, loaded.vocab_size)
    setup = Setup(loaded=loaded, windows=None, num_iters=WINDOWS, num_iters_warmup=0)  # type: ignore[arg-type]
    part = AccuracyPart(kv_cache_dtypes=(*ROUNDINGS, *BESIDE), input_lens=(WINDOW,), output_len=1)
    cases = Comparison(setup, part, text, WINDOW).measure().cases
    others = independent(text.windows(WINDOW)[:WINDOWS])
    found_of = {str(case.inputs["kv_cache_dtype"]): case.accuracy for case in cases}  # type: ignore[union-attr]
    for name in ROUNDINGS:
        found = found_of[name]
        kls, agrees = others[name]
        print(found.kv_cache_dtype, found.kl_mean, found.kl_mean_se, np.mean(kls), "top 1", end=" ")
        print(found.top1_agreement, found.top1_agreement_se, np.mean(agrees), "of", found.tokens)
        assert found.kl_mean_se is not None
        assert found.top1_agreement_se is not None
        assert len(kls) == found.tokens
        assert abs(np.mean(kls) - found.kl_mean) <= 2 * found.kl_mean_se
        assert abs(np.mean(agrees) - found.top1_agreement) <= 2 * found.top1_agreement_se
    dynamic, plain, static = (found_of[name].kl_mean for name in ("int8_per_token_head", "fp8", "int8"))
    assert dynamic < min(5e-3, plain, static)
    whole, rotated = (found_of[name] for name in ("int4_per_token_head", "int4_per_token_head+hadamard"))
    assert rotated.kl_mean <= whole.kl_mean + 2 * ((rotated.kl_mean_se or 0) ** 2 + (whole.kl_mean_se or 0) ** 2) ** 0.5
