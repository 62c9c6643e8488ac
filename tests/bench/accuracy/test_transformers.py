"""SmolLM2-135M's real weights: KL and agreement of a quantised cache, beside transformers with a cache of its own whose
layers round what they are given, written here without kvtool's kernels.

Transformers' own quantised caches need quanto or HQQ, which are not installed: KIVI is written out here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kvtool.bench.accuracy.text import read_text
from kvtool.bench.cases.accuracy import WATCHED_TOKENS, AccuracyPart, Comparison
from kvtool.bench.cases.base import Setup
from kvtool.catalog.resolve import resolve_model
from kvtool.engine.config import EngineConfig
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.text import find_tokenizer

pytestmark = pytest.mark.network

WEIGHTS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvtool-tests" / "smollm2" / "hf"
WINDOW, GROUP, WHOLE = 320, 64, 128  # tokens; of KIVI's groups and of its newest


def int8_by_vector(x: Tensor) -> Tensor:
    step = x.abs().amax(-1, keepdim=True) / 127
    return torch.clamp(torch.round(x / step), -127, 127) * step


def by_minimum(x: Tensor, dim: int, bits: int) -> Tensor:
    low = x.amin(dim, keepdim=True)
    step = (x.amax(dim, keepdim=True) - low) / (2**bits - 1)
    codes = torch.round((x - low) / step.masked_fill(step == 0, 1.0))
    return codes * step.half().float() + low.half().float()


def int4_by_64(x: Tensor) -> Tensor:
    """Heads of 64 are one group, whose step and minimum are kept in fp16."""
    return by_minimum(x, -1, 4)


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
STATIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # by the largest magnitude that the layer showed before
    "int8": lambda x, amax: torch.clamp(torch.round(x / (amax / 127)), -127, 127) * (amax / 127),
    "fp8+calibrated": lambda x, amax: e4m3(x / (amax / 448)) * (amax / 448),
}
KIVI = {"kivi_int4": 4, "kivi_int2": 2}


class Independent:
    """Transformers alone, with caches that keep what the layers below make of K and V."""

    def __init__(self, apart: list[int]) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32).eval()
        plain = self.cache(lambda layer: rounded_layer(lambda k, v: (k, v)))
        self.logits(apart, plain)
        self.amax = [(layer.keys.abs().max(), layer.values.abs().max()) for layer in plain.layers]

    def cache(self, layer: Callable[[int], Any]) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache()
        cache.layers = [layer(index) for index in range(self.model.config.num_hidden_layers)]
        return cache

    def logits(self, window: list[int], cache: Any, step: int | None = None) -> Tensor:
        pieces = torch.tensor([window]).split(step or len(window), dim=1)
        with torch.inference_mode():
            return torch.cat([self.model(piece, past_key_values=cache).logits[0] for piece in pieces])

    def of(self, name: str, window: list[int]) -> Tensor:
        """Log chances behind each token but the last."""
        if name in KIVI:
            found = self.logits(window, self.cache(lambda layer: kivi_layer(KIVI[name])), GROUP)
        elif name in STATIC:
            found = self.logits(window, self.cache(lambda layer: rounded_layer(self._static(name, layer))))
        else:
            rounding = ROUNDINGS.get(name, lambda x: x)
            found = self.logits(
                window, self.cache(lambda layer: rounded_layer(lambda k, v: (rounding(k), rounding(v))))
            )
        return found[:-1].log_softmax(-1)

    def _static(self, name: str, layer: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        k_amax, v_amax = self.amax[layer]
        return lambda k, v: (STATIC[name](k, k_amax), STATIC[name](v, v_amax))


def rounded_layer(rounding: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Any:
    from transformers.cache_utils import DynamicLayer

    class Rounded(DynamicLayer):
        def update(self, key_states: Tensor, value_states: Tensor, *more: Any, **named: Any) -> tuple[Tensor, Tensor]:
            return super().update(*rounding(key_states, value_states), *more, **named)

    return Rounded()


def kivi_layer(bits: int) -> Any:
    """Keys [1,H,L,D] by channel over groups of tokens and values by token, but for the newest, which are bf16."""
    from transformers.cache_utils import DynamicLayer

    class Kivi(DynamicLayer):
        def update(self, key_states: Tensor, value_states: Tensor, *more: Any, **named: Any) -> tuple[Tensor, Tensor]:
            before = self.get_seq_length()
            k, v = (x.bfloat16().float() for x in super().update(key_states, value_states, *more, **named))
            old = max(0, before - WHOLE) // GROUP * GROUP
            grouped = by_minimum(k[:, :, :old].unflatten(2, (old // GROUP, GROUP)), 3, bits).flatten(2, 3)
            packed = by_minimum(v[:, :, :old], -1, bits)
            return torch.cat((grouped, k[:, :, old:]), 2), torch.cat((packed, v[:, :, old:]), 2)

    return Kivi()


@pytest.mark.skipif(not WEIGHTS.exists(), reason="the weights were not fetched: tests/engine/test_real_weights.py does")
def test_figures_are_those_of_transformers_within_two_standard_errors() -> None:
    config = EngineConfig(weights=str(WEIGHTS), dtype="fp32", device="cpu", threads=1)
    loaded = LoadedModel(resolve_model(str(WEIGHTS)), config, max_positions=WINDOW + 8)
    tokenizer = find_tokenizer(str(WEIGHTS))
    assert tokenizer is not None
    text = read_text(None, tokenizer, loaded.vocab_size)
    setup = Setup(loaded=loaded, windows=None, num_iters=1, num_iters_warmup=0)  # type: ignore[arg-type]
    part = AccuracyPart(kv_cache_dtypes=(*ROUNDINGS, *STATIC, *KIVI), input_lens=(WINDOW,), output_len=1)
    cases = Comparison(setup, part, text, WINDOW).measure().cases
    found_of = {str(case.inputs["kv_cache_dtype"]): case.accuracy for case in cases}  # type: ignore[union-attr]
    window, *_, apart = text.windows(WINDOW)
    independent = Independent(apart[:WATCHED_TOKENS])
    reference = independent.of("reference", window)
    for name, found in found_of.items():
        other = independent.of(name, window)
        kl = float((reference.exp() * (reference - other)).sum(-1).mean())
        agrees = float((reference.argmax(-1) == other.argmax(-1)).float().mean())
        print(name, found.kl_mean, found.kl_mean_se, kl, "top 1", end=" ")
        print(found.top1_agreement, found.top1_agreement_se, agrees, "of", found.tokens)
        assert found.kl_mean_se is not None
        assert found.top1_agreement_se is not None
        assert len(reference) == found.tokens
        assert abs(kl - found.kl_mean) <= 2 * found.kl_mean_se
        assert abs(agrees - found.top1_agreement) <= 2 * found.top1_agreement_se
    dynamic, plain, static = (found_of[name].kl_mean for name in ("int8_per_token_head", "fp8", "int8"))
    assert dynamic < min(5e-3, plain, static)
    whole, rotated = (found_of[name] for name in ("int4_per_token_head", "int4_per_token_head+hadamard"))
    assert rotated.kl_mean <= whole.kl_mean + 2 * ((rotated.kl_mean_se or 0) ** 2 + (whole.kl_mean_se or 0) ** 2) ** 0.5
