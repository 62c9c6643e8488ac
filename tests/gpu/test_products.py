"""What only a GPU can show of products: compiled tiles at real shapes, the verdict between them, graphs of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kvtool.kernels.choosing import choosing
from kvtool.kernels.reference import step as step_reference
from kvtool.kernels.weights import ExpertWeights, Gate

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
BF16, F32 = torch.bfloat16, torch.float32


def drawn(*shape: int, dtype: torch.dtype = BF16, seed: int = 0) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cuda").to(dtype)


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing timed before, and nothing left behind."""
    from kvtool.kernels.triton import products

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    products.verdicts.cache_clear()
    yield tmp_path / "kvtool"
    products.verdicts.cache_clear()


@pytest.mark.parametrize("dtype", [BF16, torch.float16, F32], ids=str)
@pytest.mark.parametrize(
    ("rows", "columns", "depth"),
    [(1, 4096, 4096), (2, 1024, 14336), (3, 50257, 768), (4, 6144, 4096), (16, 2880, 2880), (64, 4096, 1000)],
)
def test_every_way_multiplies(dtype: torch.dtype, rows: int, columns: int, depth: int) -> None:
    """Twice each: the counters of programs that met must be left at zero."""
    from kvtool.kernels.triton import products

    x, plus, bias = (drawn(*shape, dtype=dtype) for shape in ((rows, depth), (rows, columns), (columns,)))
    weight = drawn(columns, depth, dtype=dtype, seed=1) * depth**-0.5
    exact = step_reference.product(x.double(), weight.double(), bias.double(), plus.double())
    for name, way in products.candidates(rows, weight).items():
        first, second = way(x, weight, bias, plus), way(x, weight, bias, plus)
        few = 32 if dtype == F32 else 2  # cuBLAS rounds before it adds
        assert ((first.double() - exact).abs() <= few * torch.finfo(dtype).eps * (1 + exact.abs())).all(), name
        assert torch.equal(first, second), name


def test_a_weight_of_more_than_two_to_the_31_elements() -> None:
    from kvtool.kernels.triton import products

    columns, depth = 2**20 + 64, 2048
    weight = torch.zeros(columns, depth, dtype=BF16, device="cuda")
    weight[-1], x = 1.0, torch.ones(2, depth, dtype=BF16, device="cuda")
    for name, way in products.candidates(2, weight).items():
        assert way(x, weight, None, None)[:, -2:].tolist() == [[0.0, 2048.0]] * 2, name


def test_the_verdict_is_measured_once_and_remembered(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvtool.kernels.triton import products

    x, weight = drawn(1, 4096), drawn(4096, 4096, seed=1)
    exact = step_reference.product(x.double(), weight.double())
    products.linear(x, weight)
    assert not list(fresh.glob("products-*.json")), "a request waited for it"
    with choosing():
        found = products.linear(x, weight)
    assert ((found.double() - exact).abs() <= 0.01 * (64 + exact.abs())).all()
    (file,) = fresh.glob("products-*.json")
    written = file.read_bytes()
    products.verdicts.cache_clear()  # as another process
    monkeypatch.setattr(products, "cold_time_ms", _not_timed)
    assert torch.equal(products.linear(x, weight), found)
    assert file.read_bytes() == written


def test_a_graph_is_captured_without_timing_and_follows_its_inputs(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvtool.kernels.triton import products

    x, weight = drawn(2, 2048), drawn(1024, 2048, seed=1)
    products.by_cublas(x, weight, None, None)  # cuBLAS makes its workspace
    monkeypatch.setattr(products, "cold_time_ms", _not_timed)
    graph = torch.cuda.CUDAGraph()
    with choosing(), torch.cuda.graph(graph):
        out = products.linear(x, weight)
    x.copy_(drawn(2, 2048, seed=2))
    graph.replay()
    assert ((out.double() - x.double() @ weight.double().T).abs() < 1).all()
    assert not list(fresh.glob("products-*.json"))


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_launches_that_start_early_give_the_bits_of_launches_in_turn(rows: int) -> None:
    """A chain of which each reads what the one before it wrote, a thousand times; splits meet in the same counters."""
    from kvtool.kernels.triton import gpu, products

    x, weight = drawn(rows, 1024), drawn(1024, 1024, seed=1) / 32
    around = products.Around(drawn(1024, seed=2), 1e-5)
    for name, way in products.candidates(rows, weight, around).items():

        def chain(way=way) -> Tensor:
            found = x
            for _ in range(32):
                found = way(found, weight, None, x, around)
            return found

        with gpu.in_turn():
            expected = chain()
        chain()  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = chain()
        for _ in range(1000):
            graph.replay()
        assert torch.equal(out, expected), name


@pytest.mark.parametrize("rows", [1, 64, 4096])
def test_a_graph_of_experts_follows_the_choice(rows: int) -> None:
    """Captured for one choice, replayed for others: spread evenly, and all on one expert."""
    from kvtool.kernels.triton import step

    count, hidden, width, top_k = 16, 256, 320, 4
    gate_up, down = drawn(count, 2 * width, hidden) / 16, drawn(count, hidden, width, seed=1) / 18
    weights = ExpertWeights(gate_up=gate_up, down=down, gate=Gate("silu"))
    x, shares = drawn(rows, hidden, seed=2), torch.rand(rows, top_k, device="cuda")
    spread = torch.rand(rows, count, device="cuda").topk(top_k).indices
    chosen = spread.clone()
    step.experts(x, weights, chosen, shares)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step.experts(x, weights, chosen, shares)
    for choice in (spread, spread.flip(0), (spread * 0 + torch.arange(top_k, device="cuda"))):
        chosen.copy_(choice)
        graph.replay()
        exact = _experts_at_once(x, weights, choice, shares)
        assert ((out.double() - exact).abs() <= 0.03 * (1 + exact.abs())).all()


def _experts_at_once(x: Tensor, weights: ExpertWeights, chosen: Tensor, shares: Tensor) -> Tensor:
    """Every token through every expert in fp64, those that were not chosen times 0."""
    share = torch.zeros(len(x), len(weights.down), dtype=torch.float64, device=x.device)
    share.scatter_(1, chosen, shares.double())
    total = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for expert, (gate_up, down) in enumerate(zip(weights.gate_up, weights.down, strict=True)):
        gate, up = (x.double() @ gate_up.double().T).chunk(2, dim=1)
        total += share[:, expert, None] * ((torch.nn.functional.silu(gate) * up) @ down.double().T)
    return total


def _not_timed(*arguments: object, **keywords: object) -> float:
    raise AssertionError("timed again")
