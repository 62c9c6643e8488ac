"""Which experts a token goes to: learned routers on hand-made scores, and the even one of random weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvtool.catalog.decoder import Router
from kvtool.catalog.model import Moe
from kvtool.engine.batch import StepBatch
from kvtool.engine.decoder.moe import EvenRouter, LearnedRouter
from kvtool.kernels.rows import Rows


class Given:
    """A source of weights that has what it is given."""

    description = "given"
    even_routing = False

    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = tensors

    def blocks(self, name: str) -> None:
        return None

    def tensor(self, name: str, *shape: int) -> Tensor:
        found = self.tensors[name.rsplit(".", 1)[-1]]
        assert found.shape == shape
        return found


def batch_of(token_ids: Tensor, positions: Tensor) -> StepBatch:
    return StepBatch(token_ids, positions, positions, decode=None, prefill=None, sample_rows=positions[:0])


def route(logits: list[float], per_token: int, router: Router, bias: list[float] | None = None) -> dict[int, float]:
    """The experts and shares of one token whose router logits are given."""
    moe = Moe(num_experts=len(logits), experts_per_token=per_token, intermediate_size=1)
    weights = Given(weight=torch.tensor(logits)[:, None])
    if bias is not None:
        weights.tensors["e_score_correction_bias"] = torch.tensor(bias)
    none = torch.zeros(1, dtype=torch.int64)
    chosen, shares = LearnedRouter(moe, router, 1, weights, "gate")(torch.ones(1, 1), batch_of(none, none))
    return dict(zip(chosen[0].tolist(), shares[0].tolist(), strict=True))


def test_softmax_shares_sum_to_one_when_normalised() -> None:
    logits = [0.0, 2.0, 1.0, -1.0]
    odds = torch.softmax(torch.tensor(logits), dim=-1)
    assert route(logits, 2, Router(normalise=False)) == pytest.approx({1: float(odds[1]), 2: float(odds[2])})
    both = float(odds[1] + odds[2])
    assert route(logits, 2, Router()) == pytest.approx({1: float(odds[1]) / both, 2: float(odds[2]) / both})


def test_a_scale_multiplies_the_shares() -> None:
    shares = route([0.0, 2.0, 1.0, -1.0], 2, Router(scale=2.5))
    assert sum(shares.values()) == pytest.approx(2.5)


def test_groups_are_ranked_by_their_best_expert() -> None:
    router = Router(groups=3, groups_kept=1, normalise=False)
    assert set(route([3.0, -9.0, 2.9, 2.8, 0.0, 0.0], 2, router)) == {0, 1}


def test_or_by_the_sum_of_their_two_best() -> None:
    router = Router(groups=3, groups_kept=1, normalise=False, group_score="top2", scoring="sigmoid")
    assert set(route([3.0, -9.0, 2.9, 2.8, 0.0, 0.0], 2, router)) == {2, 3}


def test_a_bias_moves_the_choice_but_not_the_share() -> None:
    router = Router(scoring="sigmoid", bias=True, normalise=False)
    shares = route([2.0, 1.0, 0.0, -1.0], 1, router, bias=[0.0, 0.0, 0.0, 5.0])
    assert shares == pytest.approx({3: float(torch.tensor(-1.0).sigmoid())})


def test_an_expert_outside_the_kept_groups_is_never_chosen() -> None:
    """Biases below every score make the kept ones negative: a zero in their place would be preferred to them."""
    router = Router(scoring="sigmoid", bias=True, normalise=False, groups=2, groups_kept=1, group_score="top2")
    assert set(route([1.0, 1.0, 0.0, 0.0], 2, router, bias=[-3.0] * 4)) == {0, 1}


SIZES = [(8, 2), (6, 4), (5, 3), (7, 7), (60, 4), (128, 8), (160, 6), (256, 8), (3, 1)]


@pytest.mark.parametrize(("num_experts", "per_token"), SIZES)
@pytest.mark.parametrize("layer", [0, 13])
def test_even_routing_gives_distinct_experts_and_an_even_load(num_experts: int, per_token: int, layer: int) -> None:
    count = 500 * num_experts
    token_ids = torch.randint(32_000, (count,), generator=torch.Generator().manual_seed(0))
    moe = Moe(num_experts=num_experts, experts_per_token=per_token, intermediate_size=1)
    batch = batch_of(token_ids, torch.arange(count) % 2048)
    chosen, shares = EvenRouter(moe, layer)(torch.ones(count, 1), batch)
    assert chosen.shape == shares.shape == (count, per_token)
    ordered = chosen.sort(dim=-1).values
    assert bool((ordered[:, 1:] != ordered[:, :-1]).all())
    assert torch.allclose(shares.sum(dim=-1), torch.ones(count))
    load = chosen.flatten().bincount(minlength=num_experts) / (count * per_token / num_experts)
    assert float(load.min()) > 0.75
    assert float(load.max()) < 1.25


def test_even_routing_of_one_repeated_token_is_even_too() -> None:
    moe = Moe(num_experts=64, experts_per_token=6, intermediate_size=1)
    chosen, _ = EvenRouter(moe, 3)(torch.ones(4096, 1), batch_of(torch.full((4096,), 7), torch.arange(4096)))
    load = chosen.flatten().bincount(minlength=64) / (4096 * 6 / 64)
    assert float(load.min()) > 0.5
    assert float(load.max()) < 1.5


def test_even_routing_of_few_tokens_is_drawn_once_for_all_layers() -> None:
    """As it is without rows to remember it by: a layer of a decode step launches nothing for it."""
    moe, (token_ids, positions) = (
        Moe(num_experts=16, experts_per_token=2, intermediate_size=1),
        torch.arange(8).view(2, 4),
    )
    rows = Rows(torch.zeros(4, 1, dtype=torch.int32), torch.ones(4, dtype=torch.int32))
    batch = StepBatch(token_ids, positions, positions, decode=rows, prefill=None, sample_rows=None)
    chosen = [EvenRouter(moe, layer)(torch.ones(4, 1), batch)[0] for layer in (0, 5)]
    for layer, found in zip((0, 5), chosen, strict=True):
        alone, _ = EvenRouter(moe, layer)(torch.ones(4, 1), batch_of(token_ids, positions))
        assert torch.equal(found, alone)
    assert chosen[0].untyped_storage().data_ptr() == chosen[1].untyped_storage().data_ptr()
    assert not torch.equal(*chosen)


def test_even_routing_depends_on_the_token_and_its_place_alone() -> None:
    moe = Moe(num_experts=16, experts_per_token=2, intermediate_size=1)
    token_ids, positions = torch.tensor([5, 9, 11, 5]), torch.tensor([0, 1, 2, 3])
    together, _ = EvenRouter(moe, 1)(torch.ones(4, 1), batch_of(token_ids, positions))
    for row in range(4):
        alone, _ = EvenRouter(moe, 1)(torch.ones(1, 1), batch_of(token_ids[row : row + 1], positions[row : row + 1]))
        assert torch.equal(alone[0], together[row])
