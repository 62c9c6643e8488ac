"""Products of few rows by each tile, against fp64: odd shapes, splits, biases, residuals, dtypes."""

from __future__ import annotations

import pytest
import torch

from kvtool.kernels.choosing import choosing, may_time
from kvtool.kernels.reference import step as step_reference
from tests.kernels.conftest import Backend
from tests.kernels.test_step import values

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
# Of the result, once; in fp32 of the sums too.
ROUNDING = {F32: 16 * torch.finfo(F32).eps, BF16: torch.finfo(BF16).eps, F16: torch.finfo(F16).eps}
SHAPES = [
    (1, 64, 64),
    (1, 20, 2048),  # in splits, by every tile
    (2, 30, 520),
    (3, 33, 97),
    (4, 18, 768),
    (5, 65, 1026),
    (16, 96, 600),
    (17, 64, 96),
    (33, 100, 520),
    (64, 70, 300),
]


@pytest.fixture
def products(backend: Backend):
    if backend.device == "cpu" and not backend.interpreted:
        pytest.skip("Triton runs in the interpreter, or on a GPU")
    from kvtool.kernels.triton import products

    return products


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize(("rows", "columns", "depth"), SHAPES)
@pytest.mark.parametrize("added", ["", "bias plus"])
def test_every_way_multiplies(backend: Backend, products, dtype, rows: int, columns: int, depth: int, added: str):
    """x and plus are slices of wider rows; plus is left as it was."""
    where = {"dtype": dtype, "device": backend.device}
    x = values(rows, depth + 16, **where)[:, :depth]
    weight = (values(columns, depth, seed=1, dtype=F32, device=backend.device) * depth**-0.5).to(dtype)
    bias = values(columns, seed=2, **where) if "bias" in added else None
    plus = values(rows, columns + 3, seed=3, **where)[:, :columns] if "plus" in added else None
    before = None if plus is None else plus.clone()
    exact = step_reference.product(*(None if t is None else t.double() for t in (x, weight, bias, plus)))
    ways = products.candidates(rows, weight)
    assert next(iter(ways)) == products.CUBLAS
    assert any(name.startswith("gemv") for name in ways) == (rows <= 4)
    for name, way in ways.items():
        out = way(x, weight, bias, plus)
        assert (out.dtype, out.is_contiguous()) == (dtype, True)
        assert ((out.double() - exact).abs() <= ROUNDING[dtype] * (1 + exact.abs())).all(), name
        assert plus is None or torch.equal(plus, before), name


def test_the_depth_is_divided(products) -> None:
    """What the shapes above rest on: on the interpreter's four multiprocessors a narrow weight is read in splits."""
    from kvtool.kernels.triton import gpu
    from kvtool.kernels.triton.tiles.products import gemv_tiles, product_tiles

    target = gpu.target(torch.device("cpu"))
    tiles = gemv_tiles(2) | product_tiles(2, target)
    splits = {name: tile.splits(20, 2048, 2 * tile.block_n, target) for name, tile in tiles.items()}
    assert min(splits.values()) > 1, splits


def test_equal_calls_give_equal_bits(backend: Backend, products) -> None:
    where = {"dtype": BF16, "device": backend.device}
    x, weight = values(3, 1024, **where), values(32, 1024, seed=1, **where)
    for way in products.candidates(3, weight).values():
        assert torch.equal(way(x, weight, None, None), way(x, weight, None, None))


def test_what_does_not_fit_is_refused() -> None:
    from kvtool.kernels.triton import products

    x, weight = torch.zeros(2, 64), torch.zeros(32, 64)
    way = products.candidates(2, weight)["split"]
    for wrong, message in (
        ((x[:, :32], weight, None, None), r"x \[2, 32\] does not fit weight \[32, 64\]"),
        ((x, weight.half(), None, None), "a product of torch.float32 and torch.float16"),
        ((x, weight, torch.zeros(31), None), "the bias does not fit"),
        ((x, weight, None, torch.zeros(2, 31)), "what is added does not fit"),
        ((x, torch.zeros(64, 32).T, None, None), "must be contiguous"),
        ((torch.zeros(65, 64), weight, None, None), "65 rows are too many"),
    ):
        with pytest.raises(ValueError, match=message):
            way(*wrong)
    with pytest.raises(ValueError, match="5 rows are too many for a GEMV"):
        products.candidates(2, weight)["gemv-wide"](torch.zeros(5, 64), weight, None, None)


def test_ways_are_timed_while_somebody_prepares_and_never_in_a_request() -> None:
    assert not may_time()
    with choosing():
        assert may_time()
    assert not may_time()
