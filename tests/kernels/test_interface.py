"""What kernels promise: every backend has all of it, and is loaded by name."""

from __future__ import annotations

import inspect

import pytest
import torch

from kvtool.kernels import BACKENDS, load_kernels
from kvtool.kernels.interface import Kernels, StepKernels
from kvtool.kernels.pages import Pages
from kvtool.kernels.rows import Rows
from kvtool.kernels.weights import GATES
from kvtool.system.errors import KvtoolError

OPERATIONS = [
    name
    for promised in (StepKernels, Kernels)
    for name, member in vars(promised).items()
    if inspect.isfunction(member) and name[0] != "_"
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_backend_has_the_signatures_of_the_contract(backend: str, operation: str) -> None:
    promised = list(inspect.signature(getattr(Kernels, operation)).parameters.values())[1:]
    offered = list(inspect.signature(getattr(load_kernels(backend), operation)).parameters.values())
    assert offered == promised


def test_experts_have_a_kernel_for_every_gate_that_is_promised() -> None:
    from kvtool.kernels.triton.experts import KERNEL_GATES

    assert set(KERNEL_GATES) == GATES


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(KvtoolError, match="unknown backend 'tritn': did you mean triton"):
        load_kernels("tritn")


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_says_how_it_reads(backend: str) -> None:
    assert load_kernels(backend).tile_tokens >= 1


def test_what_is_made_of_rows_is_made_once_and_not_for_other_rows() -> None:
    rows = Rows(torch.tensor([[3, 4], [5, 0]]), torch.tensor([20, 7]))
    made: list[int] = []
    for _ in range(2):
        assert rows.once("it", lambda: made.append(1) or len(made)) == 1
    assert rows.lengths is rows.lengths
    prefill = rows.with_starts(4)
    assert (prefill.starts, prefill.longest) == ([0, 2, 4], 2)
    assert prefill.with_starts(4) is prefill
    assert prefill.once("it", lambda: 7) == 7


def test_pages_are_mapped_tensor_by_tensor() -> None:
    scales = torch.ones(2, 4, 3)
    pages = Pages(torch.zeros(2, 4, 3, 8), torch.zeros(2, 4, 3, 16), scales, 0.5)
    assert (pages.block_size, pages.value_dim, len(pages.tensors)) == (4, 16, 3)
    doubled = pages.map(lambda tensor: tensor.double())
    assert [tensor.dtype for tensor in doubled.tensors] == [torch.float64] * 3
    assert doubled.v_scale == 0.5
    latents = Pages(torch.zeros(2, 4, 40), latent_dim=32)
    assert (latents.value_dim, latents.map(torch.ones_like).latent_dim) == (32, 32)
