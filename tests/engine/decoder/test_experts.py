"""Experts are kept in one piece; a mixture says what its experts say one by one."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from kvtool.catalog.decoder import ClampedSwiglu, Decoder
from kvtool.catalog.model import Moe
from kvtool.engine.batch import StepBatch
from kvtool.engine.decoder.context import StepContext
from kvtool.engine.decoder.experts import load_experts
from kvtool.engine.decoder.mlp import GatedMlp, Mlp, load_mlp
from kvtool.engine.decoder.moe import EvenRouter, MoeMlp
from kvtool.engine.decoder.part import Alone
from kvtool.engine.weights.source import RandomWeights
from kvtool.kernels import load_kernels
from kvtool.system.errors import KvtoolError

MOE = Moe(num_experts=5, experts_per_token=2, intermediate_size=24)
HIDDEN, TOKENS = 32, 7
BIASED = Decoder(family="tiny", exact=True, mlp_bias=True)


def random_weights() -> RandomWeights:
    return RandomWeights(seed=0, dtype=torch.float32, device=torch.device("cpu"))


def moe_of(decoder: Decoder, shared: GatedMlp | Mlp | None = None) -> MoeMlp:
    return MoeMlp(EvenRouter(MOE, 0), load_experts(HIDDEN, MOE, decoder, random_weights(), "experts"), shared)


def step_of(tokens: int, backend: str) -> tuple[Tensor, StepContext]:
    ids, positions = torch.arange(tokens) * 13, torch.arange(tokens)
    x = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(1))
    batch = StepBatch(ids, positions, positions, decode=None, prefill=None, sample_rows=positions[:0])
    return x, StepContext(batch, load_kernels(backend), (x, x), (x, x), Alone(), batch)


@pytest.mark.parametrize(
    "decoder",
    [
        Decoder(family="tiny", exact=True),
        BIASED,
        dataclasses.replace(BIASED, activation="gelu_pytorch_tanh"),
        dataclasses.replace(BIASED, clamped_swiglu=ClampedSwiglu(limit=0.5)),
    ],
    ids=["silu", "biased", "gelu", "clamped"],
)
@pytest.mark.parametrize("has_shared", [False, True])
def test_a_mixture_adds_what_each_of_its_experts_says(decoder: Decoder, has_shared: bool) -> None:
    kernels = load_kernels("torch")
    shared = load_mlp(HIDDEN, 40, decoder, random_weights(), kernels, "shared") if has_shared else None
    moe = moe_of(decoder, shared)
    x, step = step_of(TOKENS, "torch")
    chosen, shares = moe.router(x, step.batch)
    expected = torch.zeros_like(x) if shared is None else shared(x, step)
    for token, rank in itertools.product(range(TOKENS), range(MOE.experts_per_token)):
        alone = load_mlp(HIDDEN, 24, decoder, random_weights(), kernels, f"experts.{chosen[token, rank]}")
        expected[token] += shares[token, rank] * alone(x[token : token + 1], step)[0]
    assert moe.capturable
    for backend in ("torch", "reference"):
        torch.testing.assert_close(moe(*step_of(TOKENS, backend)), expected)


def test_experts_are_stacked_as_they_are_called() -> None:
    stacked = load_experts(HIDDEN, MOE, BIASED, random_weights(), "experts")
    assert (stacked.gate_up.shape, stacked.down.shape) == ((5, 48, 32), (5, 32, 24))
    for expert in range(5):
        drawn = random_weights().tensor(f"experts.{expert}.up_proj.weight", 24, HIDDEN)
        assert torch.equal(stacked.gate_up[expert, 24:], drawn)


def test_a_gate_without_a_kernel_runs_but_is_not_captured() -> None:
    moe = moe_of(Decoder(family="tiny", exact=True, activation="relu"))
    assert not moe.capturable
    torch.testing.assert_close(moe(*step_of(TOKENS, "torch")), moe(*step_of(TOKENS, "reference")))


def test_experts_without_a_gate_are_refused() -> None:
    with pytest.raises(KvtoolError, match="the engine runs no experts without a gate"):
        moe_of(Decoder(family="tiny", exact=True, gated_mlp=False))


def test_an_unknown_activation_is_refused_when_the_model_is_loaded() -> None:
    with pytest.raises(KvtoolError, match=r"activation 'relu2' is not one the engine runs: silu, gelu, gelu_new"):
        moe_of(Decoder(family="tiny", exact=True, activation="relu2"))
