"""What compiled kernels are told is taken down whole or not at all, over memory that nobody else gets."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kvtool.kernels.cpu import cpu
from kvtool.kernels.cpu.recording import Arena
from kvtool.kernels.weights import Gate, GatedWeight, Weight

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="the compiled kernels need gcc")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16() * 0.3


def step_of(x: Tensor) -> Callable[[], Tensor]:
    """Two layers' worth of operations on x [T, 96], whose inner tensors come and go."""
    norm, narrow = drawn(96, seed=1), cpu.prepare(Weight(drawn(96, 64, seed=2)))
    wide = cpu.prepare(GatedWeight(drawn(128, 96, seed=3), None, Gate("silu")))

    def step() -> Tensor:
        stream = x
        for _ in range(2):
            inner = cpu.gated(cpu.rms_norm(stream, norm, 1e-5), wide)
            _, stream = cpu.add_rms_norm(cpu.linear(inner, narrow), stream, norm, eps=1e-5)
        return stream

    return step


@needs_gcc
@pytest.mark.parametrize("rows", [1, 7, 33])
def test_a_step_is_done_again_on_what_its_input_holds_by_then(rows: int) -> None:
    x = drawn(rows, 96)
    step = step_of(x)
    with torch.inference_mode():
        found, replay = cpu.record(step)
        assert replay is not None
        assert torch.equal(found, step())
        noise = [torch.full_like(found, float("nan")) for _ in range(50)]  # memory that the step gave back, if it did
        x.copy_(drawn(rows, 96, seed=9))
        replay()
        assert torch.equal(found, step())
        assert all(bool(tensor.isnan().all()) for tensor in noise)


@needs_gcc
@pytest.mark.parametrize(
    "also",
    [lambda x: x.add_(1), lambda x: x * 2, lambda x: torch.empty_like(x), lambda x: x[torch.tensor([0])]],
    ids=["in place", "computed", "allocated", "gathered"],
)
def test_a_step_that_does_more_is_not_taken_down(also: Callable[[Tensor], Tensor]) -> None:
    x = drawn(3, 96)
    step = step_of(x)

    def mixed() -> Tensor:
        also(x)
        return step()

    with torch.inference_mode():
        found, replay = cpu.record(mixed)
        assert replay is None
        assert torch.equal(found, step())


@needs_gcc
def test_after_an_error_kernels_run_as_ever() -> None:
    def fails() -> Tensor:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        cpu.record(fails)
    step = step_of(drawn(2, 96))
    assert torch.equal(step(), step())


def test_without_a_compiler_a_step_just_runs(without_compiler: None) -> None:
    found, replay = cpu.record(step_of(drawn(2, 96)))
    assert replay is None
    assert found.shape == (2, 96)


def test_memory_is_given_again_once_nothing_lies_in_it() -> None:
    arena = Arena()
    first, second = (arena.empty((3, 5), torch.bfloat16) for _ in range(2))
    place = first.data_ptr()
    assert place != second.data_ptr()
    assert place % 64 == second.data_ptr() % 64 == 0
    view = first[1:].t()
    del first
    assert arena.empty((3, 5), torch.bfloat16).data_ptr() != place
    del view
    assert arena.empty((15,), torch.bfloat16).data_ptr() == place
