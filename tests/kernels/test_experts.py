"""A mixture of experts in one piece against fp64, token by token: experts of no row, of one, of many."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from kvtool.kernels.reference import step as step_reference
from kvtool.kernels.weights import ExpertWeights, Gate
from tests.kernels.conftest import Backend
from tests.kernels.paged_case import TOLERANCE
from tests.kernels.test_step import values

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture
def step(backend: Backend):
    return backend.kernels


def expert_weights(
    backend: Backend, dtype: torch.dtype, count: int, hidden: int, width: int, activation: str, biased: bool
) -> ExpertWeights:
    def drawn(*shape: int, seed: int) -> Tensor:
        scale = shape[-1] ** -0.5 if len(shape) == 3 else 1.0
        return (values(*shape, dtype=F32, device=backend.device, seed=seed) * scale).to(dtype)

    return ExpertWeights(
        gate_up=drawn(count, 2 * width, hidden, seed=1),
        down=drawn(count, hidden, width, seed=2),
        gate_up_bias=drawn(count, 2 * width, seed=3) if biased else None,
        down_bias=drawn(count, hidden, seed=4) if biased else None,
        gate=Gate(activation, alpha=1.702, limit=1.5),
    )


def widened(weights: ExpertWeights) -> ExpertWeights:
    fields = {field.name: getattr(weights, field.name) for field in dataclasses.fields(weights)}
    return ExpertWeights(**{n: value.double() if isinstance(value, Tensor) else value for n, value in fields.items()})


def assert_right(step, weights: ExpertWeights, chosen: Tensor, plus: Tensor | None) -> None:
    dtype, device = weights.down.dtype, weights.down.device
    tokens, hidden = len(chosen), weights.down.shape[1]
    x = values(tokens, hidden + 8, dtype=dtype, device=device, seed=5)[:, :hidden]
    shares = values(*chosen.shape, dtype=F32, device=device, seed=6).softmax(-1)
    before = None if plus is None else plus.clone()
    found = step.experts(x, weights, chosen, shares, plus)
    again = step.experts(x, step.prepare(weights), chosen, shares, plus)
    assert ((again.double() - found.double()).abs() < TOLERANCE[dtype] * (1 + found.double().abs())).all()
    wide_plus = None if plus is None else plus.double()
    exact = step_reference.experts(x.double(), widened(weights), chosen, shares.double(), wide_plus)
    assert (found.dtype, found.shape) == (dtype, (tokens, hidden))
    # Two roundings on the way, of the inner elements and of what each expert says.
    assert ((found.double() - exact).abs() < TOLERANCE[dtype] * (1 + exact.abs())).all()
    assert plus is None or torch.equal(plus, before)


def chosen_of(tokens: int, top_k: int, count: int, device: str) -> Tensor:
    drawn = torch.rand(tokens, count, generator=torch.Generator().manual_seed(tokens + top_k))
    return drawn.topk(top_k, dim=-1).indices.to(device)


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize(
    ("tokens", "top_k", "count", "hidden", "width"),
    [
        (1, 1, 4, 64, 32),
        (1, 8, 8, 64, 48),
        (5, 3, 7, 40, 33),
        (3, 2, 20, 32, 24),
        (40, 2, 2, 64, 64),
        (0, 2, 4, 32, 32),
    ],
)
def test_each_token_gets_the_sum_of_its_experts(backend: Backend, step, dtype, tokens, top_k, count, hidden, width):
    weights = expert_weights(backend, dtype, count, hidden, width, "silu", biased=False)
    assert_right(step, weights, chosen_of(tokens, top_k, count, backend.device), None)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh", "clamped_swiglu"])
def test_gates_biases_and_a_residual(backend: Backend, step, activation: str) -> None:
    weights = expert_weights(backend, BF16, 5, 48, 72, activation, biased=True)
    plus = values(9, 60, dtype=BF16, device=backend.device, seed=7)[:, :48]
    assert_right(step, weights, chosen_of(9, 3, 5, backend.device), plus)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_one_expert_may_get_every_token_and_others_none(backend: Backend, step, dtype: torch.dtype) -> None:
    """More rows than a block has, and than one more: 70 rows in blocks of 16 or 64, beside experts without any."""
    weights = expert_weights(backend, dtype, 6, 32, 32, "silu", biased=True)
    assert_right(step, weights, torch.full((70, 1), 4, device=backend.device), None)


def test_pairs_are_sorted_by_expert_and_cut_into_blocks(backend: Backend) -> None:
    if backend.device == "cpu" and not backend.interpreted:
        pytest.skip("Triton runs in the interpreter, or on a GPU")
    from kvtool.kernels.triton import experts

    chosen = torch.tensor([[2, 0], [2, 5], [2, 1], [2, 0], [2, 5]] + [[2, 3]] * 14, device=backend.device)
    order, blocks = experts._placed(chosen, num_experts=7, block_m=16)
    flat = chosen.flatten()
    assert order.tolist() == flat.sort(stable=True).indices.tolist()
    used = [block[:3] for block in blocks.tolist() if block[0] >= 0]
    assert used == [[0, 0, 2], [1, 2, 3], [2, 3, 19], [2, 19, 22], [3, 22, 36], [5, 36, 38]]
    assert [block[0] for block in blocks.tolist()[len(used) :]] == [-1] * (len(blocks) - len(used))


@pytest.mark.parametrize("block_m", [16, 64, 128])
def test_the_bound_on_blocks_holds_for_any_choice(block_m: int) -> None:
    from kvtool.kernels.triton.tiles.products import block_bound

    random = torch.Generator().manual_seed(0)
    for _ in range(300):
        experts, pairs = (int(torch.randint(1, most, (1,), generator=random)) for most in (20, 400))
        some = int(torch.randint(1, experts + 1, (1,), generator=random))
        counts = torch.randint(some, (pairs,), generator=random).bincount(minlength=experts)
        assert int((counts + block_m - 1).div(block_m, rounding_mode="floor").sum()) <= block_bound(
            pairs, experts, block_m
        )


def test_what_does_not_fit_is_refused(backend: Backend) -> None:
    from kvtool.kernels.triton import step

    weights = expert_weights(backend, F32, 3, 16, 8, "silu", biased=False)
    x, chosen = torch.zeros(2, 16), torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"x \[2, 8\] does not fit experts"):
        step.experts(x[:, :8], weights, chosen, torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"shares \[2, 2\] for chosen \[2, 1\]"):
        step.experts(x, weights, chosen, torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"chosen \[2, 1\] does not fit x \[1, 16\]"):
        step.experts(x[:1], weights, chosen, torch.ones(2, 1))
    halved = dataclasses.replace(weights, gate_up=weights.gate_up[:, :8])
    with pytest.raises(ValueError, match=r"gate and up \[3, 8, 16\] are not \[3, 16, 16\]"):
        step.experts(x, halved, chosen, torch.ones(2, 1))
