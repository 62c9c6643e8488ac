"""Products with what stands around them, routers and experts of a few tokens: each against its fp64 twin."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kvtool.kernels import plain
from kvtool.kernels.fused import Choice, Normed, Shared
from kvtool.kernels.pages import Pages
from kvtool.kernels.reference import fused as reference
from kvtool.kernels.weights import Gate, GatedWeight, Weight
from tests.kernels.conftest import Backend
from tests.kernels.paged_case import TOLERANCE
from tests.kernels.test_experts import chosen_of, expert_weights, widened
from tests.kernels.test_step import values

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
EPS = 1e-5


@pytest.fixture
def fused(backend: Backend):
    if backend.kernels.fused is None:
        pytest.skip("Triton has fused kernels, in the interpreter or on a GPU")
    return backend.kernels.fused


def stream(tokens: int, size: int, dtype: torch.dtype, device: str) -> Normed:
    """Rows of a wider tensor, large as a stream's are; the norm's weight is wider than they are."""
    x = 30 * values(tokens, size + 16, dtype=dtype, device=device, seed=5)[:, :size]
    return Normed(x, 1 + 0.3 * values(size, dtype=F32, device=device, seed=6), EPS)


def wide(x: Normed | Tensor | None):
    if isinstance(x, Normed):
        return Normed(x.x.double(), x.weight.double(), x.eps)
    return None if x is None else x.double()


def assert_close(found: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    assert (found.dtype, found.shape, found.is_contiguous()) == (dtype, exact.shape, True)
    assert ((found.double() - exact).abs() <= TOLERANCE[dtype] * (1 + exact.abs())).all()


@pytest.mark.parametrize(
    ("dtype", "rows", "columns", "depth", "activation"),
    [
        (F32, 1, 20, 600, ""),  # in splits, by every tile
        (BF16, 2, 12, 1100, "clamped_swiglu"),
        (F16, 3, 14, 97, "silu"),
        (BF16, 17, 40, 560, "silu"),
        (F16, 17, 12, 64, ""),
    ],
    ids=str,
)
def test_every_way_does_what_stands_around_a_product(
    backend: Backend, fused, dtype, rows: int, columns: int, depth: int, activation: str
) -> None:
    """In one split and in several; plus is a slice of wider rows and stays as it was."""
    from kvtool.kernels.triton import products

    where = {"dtype": dtype, "device": backend.device}
    x, gate = stream(rows, depth, **where), Gate(activation, alpha=1.702, limit=1.5) if activation else None
    weight = (values(columns, depth, seed=1, dtype=F32, device=backend.device) * depth**-0.5).to(dtype)
    bias = values(columns, seed=2, **where) if activation != "silu" else None
    out_columns = columns // 2 if gate else columns
    plus = values(rows, out_columns + 3, seed=3, **where)[:, :out_columns]
    before, wide_bias = plus.clone(), None if bias is None else bias.double()
    if gate is None:
        exact = reference.linear(wide(x), Weight(weight.double(), wide_bias), plus.double())
    else:
        exact = reference.gated(wide(x), GatedWeight(weight.double(), wide_bias, gate)) + plus.double()
    around = products.Around(x.weight, x.eps, gate)
    ways = products.candidates(rows, weight, around)
    assert len(ways) > 1 or (dtype == F16 and rows > products.GEMV_ROWS)
    for name, way in ways.items():
        assert_close(way(x.x, weight, bias, plus, around), exact, dtype)
        assert torch.equal(plus, before), name


def signs(*shape: int, dtype: torch.dtype, device: str, seed: int) -> Tensor:
    """-1, 0 and 1, whose sums are exact in every dtype, and often equal."""
    drawn = torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(dtype).to(device)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    ("dtype", "rows", "columns", "depth"),
    [(F32, 1, 600, 64), (BF16, 3, 20, 1100), (F16, 4, 300, 97), (BF16, 17, 150, 560), (F16, 64, 9, 64)],
    ids=str,
)
def test_only_where_the_largest_column_stands(
    backend: Backend, fused, dtype, rows: int, columns: int, depth: int, normed: bool
) -> None:
    """By every way the first of equals, as by torch; in one split and several, with all columns negative, and NaN."""
    from kvtool.kernels.triton import products

    where = {"dtype": dtype, "device": backend.device}
    x, weight = signs(rows, depth, seed=1, **where), signs(columns, depth, seed=2, **where)
    if normed:
        x[x == 0] = 1  # a root mean square of 1, so that sums stay exact
    weight[columns // 2] = weight[columns - 1]
    below, unknown = -weight.abs() - (weight == 0).to(dtype), weight.clone()
    unknown[columns - 2, 0] = float("nan")
    around = products.Around(torch.ones(depth, **where) if normed else None, EPS, largest=True)
    for name, way in products.candidates(rows, weight, around).items():
        for given, matrix in ((x, weight), (x.abs() + (x == 0).to(dtype), below), (x, unknown), (x, 0 * weight)):
            expected = (given.double() @ matrix.double().T).max(dim=-1).indices
            assert way(given, matrix, None, None, around).tolist() == expected.tolist(), name
    given = Normed(x, torch.ones(depth, **where), EPS) if normed else x
    assert fused.likeliest(given, Weight(weight)).tolist() == (x.double() @ weight.double().T).max(1).indices.tolist()


def choice_of(kind: str, experts: int, hidden: int, device: str) -> Choice:
    weight = values(experts, hidden, dtype=F32, device=device, seed=1) * hidden**-0.5
    bias = values(experts, dtype=F32, device=device, seed=2)
    plain = Choice(weight=weight, top_k=3)
    return {
        "softmax": plain,
        "not normalised": replace(plain, normalised=False, scale=2.5),
        "logit bias": replace(plain, logit_bias=bias),
        "groups": replace(plain, groups=4, groups_kept=2, normalised=False),
        "sigmoid, bias, best two": replace(
            plain, is_sigmoid=True, bias=bias, groups=4, groups_kept=2, top_two=True, scale=1.7
        ),
    }[kind]


@pytest.mark.parametrize("kind", ["softmax", "not normalised", "logit bias", "groups", "sigmoid, bias, best two"])
@pytest.mark.parametrize(("tokens", "experts", "hidden"), [(1, 12, 96), (3, 20, 520)])
def test_the_choice_of_experts(backend: Backend, fused, kind: str, tokens: int, experts: int, hidden: int) -> None:
    choice = choice_of(kind, experts, hidden, backend.device)
    x = stream(tokens, hidden, F32, backend.device)
    exact = replace(choice, **{n: wide(getattr(choice, n)) for n in ("weight", "logit_bias", "bias")})
    for given in (x, x.x / 30):
        chosen, shares = fused.route(given, choice)
        expected, expected_shares = reference.route(wide(given), exact)
        assert chosen.tolist() == expected.tolist()
        assert shares.dtype == F32
        torch.testing.assert_close(shares.double(), expected_shares, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "tokens", "kind"),
    [(F32, 1, "plain"), (BF16, 2, "biased"), (F32, 2, "shared"), (BF16, 1, "wide shared"), (BF16, 9, "shared")],
    ids=str,
)
def test_experts_with_what_all_tokens_share(backend: Backend, fused, dtype, tokens: int, kind: str) -> None:
    """Few tokens and many; shared experts that are two of the others', and one of another width."""
    hidden, width, count, device = 40, 24, 4, backend.device
    weights = expert_weights(backend, dtype, count, hidden, width, "silu", biased=kind == "biased")
    x, chosen = stream(tokens, hidden, dtype, device), chosen_of(tokens, 2, count, device)
    shares = values(*chosen.shape, dtype=F32, device=device, seed=7).softmax(-1)
    plus, shared, wide_shared = values(tokens, hidden, dtype=dtype, device=device, seed=8), None, None
    if "shared" in kind:
        inner = 2 * width if kind == "shared" else width + 8
        drawn = (values(*shape, dtype=F32, device=device, seed=9) for shape in ((2 * inner, hidden), (hidden, inner)))
        up, down = ((one * one.shape[1] ** -0.5).to(dtype) for one in drawn)
        shared = Shared(GatedWeight(up, None, weights.gate), Weight(down))
        wide_shared = Shared(GatedWeight(up.double(), None, weights.gate), Weight(down.double()))
    exact = reference.experts(wide(x), widened(weights), chosen, shares.double(), plus.double(), wide_shared)
    assert_close(fused.experts(x, weights, chosen, shares, plus, shared), exact, dtype)


@pytest.mark.parametrize(("dtype", "tokens"), [(F32, 2), (BF16, 5)], ids=str)
def test_queries_absorb_their_matrix(backend: Backend, fused, dtype, tokens: int) -> None:
    """Beside what `split_latent` does; matrices are a part of wider heads."""
    heads, nope, rank, rope = 3, 12, 72, 8
    where = {"dtype": dtype, "device": backend.device}
    q, latent = values(tokens, heads, nope + rope, **where), values(tokens, rank + rope, seed=1, **where)
    norm, w_uk = values(rank, seed=2, **where), values(heads, nope + 5, rank, seed=3, **where)[:, :nope] * nope**-0.5
    turn = values(tokens, 1, rope, seed=4, **where), values(tokens, 1, rope, seed=5, **where)
    slots = torch.tensor([17, -1, 0, 3, 16], device=backend.device)[:tokens]
    results = []
    for kernels, up in ((fused, lambda x: x), (reference, lambda x: x.double())):
        pages = Pages(torch.zeros(2, 16, rank + rope, dtype=up(q).dtype, device=backend.device), latent_dim=rank)
        given = up(q).clone(), up(latent), up(norm), EPS, (up(turn[0]), up(turn[1])), pages, slots, up(w_uk)
        results.append((kernels.absorbed(*given), pages.k))
    for found, exact in zip(*results, strict=True):
        assert_close(found, exact, dtype)


@pytest.mark.parametrize("size", [37, 300])
def test_a_nucleus_without_sorting(backend: Backend, size: int) -> None:
    """As by sorting; of rows of a wider tensor; where equal ones are at the set's end, all of them stay."""
    drawn = torch.rand(5, size + 3, generator=torch.Generator().manual_seed(size))[:, :size] ** 6
    probabilities = (drawn / drawn.sum(1, keepdim=True)).to(backend.device)
    top_ps = torch.tensor([1e-6, 0.3, 0.9, 0.999, 1.0], device=backend.device)
    found = backend.kernels.nucleus(probabilities, top_ps)
    assert torch.equal(found, plain.nucleus(probabilities.double(), top_ps.double()).float())
    equal = torch.tensor([[0.4, 0.1, 0.1, 0.1, 0.3]], device=backend.device)
    kept = backend.kernels.nucleus(equal, torch.tensor([0.75], device=backend.device))
    assert kept[0].count_nonzero() == (5 if backend.interpreted or backend.device != "cpu" else 3)


def test_what_does_not_fit_is_refused(backend: Backend, fused) -> None:
    x, choice = torch.zeros(2, 16, device=backend.device), choice_of("softmax", 8, 16, backend.device)
    with pytest.raises(ValueError, match=r"x \[2, 8\] does not fit a router \[8, 16\]"):
        fused.route(x[:, :8], choice)
    with pytest.raises(ValueError, match="9 of 8 experts"):
        fused.route(x, replace(choice, top_k=9))
    with pytest.raises(ValueError, match="a router has is fp32"):
        fused.route(x, replace(choice, weight=choice.weight.half()))
