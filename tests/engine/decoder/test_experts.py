"""Experts are kept once: one by one they are views of the stack that fused kernels multiply by."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from kvtool.catalog.decoder import ClampedSwiglu, Decoder
from kvtool.catalog.model import Moe
from kvtool.engine.batch import StepBatch
from kvtool.engine.decoder.experts import load_experts
from kvtool.engine.decoder.moe import EvenRouter, MoeMlp
from kvtool.engine.weights.source import RandomWeights
from kvtool.kernels.reference import step as step_reference

MOE = Moe(num_experts=5, experts_per_token=2, intermediate_size=24)
HIDDEN, TOKENS = 32, 7
BIASED = Decoder(family="tiny", exact=True, mlp_bias=True)


def random_weights() -> RandomWeights:
    return RandomWeights(seed=0, dtype=torch.float32, device=torch.device("cpu"))


def moe_of(decoder: Decoder) -> MoeMlp:
    return MoeMlp(MOE, EvenRouter(MOE, 0), load_experts(HIDDEN, MOE, decoder, random_weights(), "experts"), None)


def step_of(tokens: int) -> tuple[Tensor, StepBatch]:
    ids, positions = torch.arange(tokens) * 13, torch.arange(tokens)
    x = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(1))
    return x, StepBatch(ids, positions, positions, decode=None, prefill=None, sample_rows=positions[:0])


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
@pytest.mark.parametrize("residual", [False, True])
def test_all_at_once_say_what_they_say_one_after_another(decoder: Decoder, residual: bool) -> None:
    moe = moe_of(decoder)
    x, batch = step_of(TOKENS)
    plus = torch.ones_like(x) if residual else None
    assert moe.capturable
    torch.testing.assert_close(moe(x, batch, plus, step_reference), moe(x, batch, plus))


def test_each_expert_lies_in_the_stack() -> None:
    experts = load_experts(HIDDEN, MOE, BIASED, random_weights(), "experts")
    stacked = experts.stacked
    assert stacked is not None
    assert (stacked.gate_up.shape, stacked.down.shape) == ((5, 48, 32), (5, 32, 24))
    for one, expert in enumerate(experts.alone):
        assert expert.inner.weight.data_ptr() == stacked.gate_up[one].data_ptr()
        assert expert.down.weight.data_ptr() == stacked.down[one].data_ptr()
        drawn = random_weights().tensor(f"experts.{one}.up_proj.weight", 24, HIDDEN)
        assert torch.equal(stacked.gate_up[one, 24:], drawn)


@pytest.mark.parametrize(
    "decoder",
    [Decoder(family="tiny", exact=True, activation="relu"), Decoder(family="tiny", exact=True, gated_mlp=False)],
)
def test_a_gate_without_a_kernel_runs_one_after_another_and_is_not_captured(decoder: Decoder) -> None:
    moe = moe_of(decoder)
    x, batch = step_of(TOKENS)
    assert not moe.capturable
    torch.testing.assert_close(moe(x, batch, None, step_reference), moe(x, batch))
