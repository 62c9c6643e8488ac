"""The next token: greedy, with a temperature, from a nucleus; the same for the same seed."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kvtool.engine.sampler import sample
from kvtool.engine.sequence import SamplingParams
from kvtool.kernels.plain import nucleus
from kvtool.system.errors import KvtoolError

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -5.0])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(logits: Tensor, count: int, *, seed: int = 0, **params: float) -> Tensor:
    rows = [SamplingParams(max_tokens=1, **params)] * count
    return sample(logits.expand(count, -1), rows, seeded(seed))


def test_greedy_takes_the_maximum_and_draws_nothing() -> None:
    generator = seeded()
    before = generator.get_state()
    logits = torch.randn(4, 50, generator=seeded(1))
    assert torch.equal(sample(logits, [SamplingParams(max_tokens=1)] * 4, generator), logits.argmax(dim=-1))
    assert torch.equal(generator.get_state(), before)


def test_greedy_rows_stay_greedy_beside_drawn_ones() -> None:
    rows = [SamplingParams(max_tokens=1, temperature=t) for t in itertools.islice(itertools.cycle((0.0, 5.0)), 400)]
    tokens = sample(LOGITS.expand(400, -1), rows, seeded())
    assert set(tokens[0::2].tolist()) == {0}
    assert set(tokens[1::2].tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_drawn_tokens_have_their_probabilities(temperature: float) -> None:
    count = 20_000
    expected = torch.softmax(LOGITS / temperature, dim=-1) * count
    found = draws(LOGITS, count, temperature=temperature).bincount(minlength=5)
    # 23.5 is what a chi-square of 4 degrees of freedom exceeds once in ten thousand.
    assert float(((found - expected) ** 2 / expected).sum()) < 23.5


def test_the_same_seed_draws_the_same_tokens() -> None:
    assert torch.equal(draws(LOGITS, 200, temperature=1.0), draws(LOGITS, 200, temperature=1.0))
    assert not torch.equal(draws(LOGITS, 200, temperature=1.0), draws(LOGITS, 200, temperature=1.0, seed=1))


def test_a_small_nucleus_leaves_the_likeliest_alone() -> None:
    assert set(draws(LOGITS, 300, temperature=1.0, top_p=0.1).tolist()) == {0}
    assert set(draws(LOGITS, 300, temperature=1.0, top_p=0.7).tolist()) == {0, 1}


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-30, 1e-6])
def test_a_vanishing_temperature_is_greedy(temperature: float) -> None:
    assert set(draws(LOGITS, 50, temperature=temperature).tolist()) == {0}


@given(
    weights=st.lists(st.integers(0, 1000), min_size=1, max_size=12).filter(any),
    top_p=st.floats(0.01, 1.0),
)
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(weights: list[int], top_p: float) -> None:
    probabilities = torch.tensor([weights], dtype=torch.float64) / sum(weights)
    kept = nucleus(probabilities, torch.tensor([top_p], dtype=torch.float64))[0]
    chosen = kept > 0
    assert torch.equal(kept[chosen], probabilities[0, chosen]), "what stays keeps its probability"
    assert float(kept.sum()) >= top_p - 1e-12
    assert float(kept.sum() - kept[chosen].min()) < top_p + 1e-12, "without its last token it falls short"
    assert bool(chosen.any())
    if not bool(chosen.all()):
        assert float(probabilities[0, ~chosen].max()) <= float(kept[chosen].min())


def test_top_p_of_one_keeps_every_token_however_many_there_are() -> None:
    probabilities = torch.softmax(torch.randn(1, 200_000, generator=seeded()), dim=-1)
    assert torch.equal(nucleus(probabilities, torch.ones(1)), probabilities)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"max_tokens": 0}, "output length 0 must be at least 1 token"),
        ({"temperature": -0.1}, "temperature -0.1 must be from 0"),
        ({"temperature": float("nan")}, "temperature nan must be from 0"),
        ({"temperature": float("inf")}, "temperature inf must be from 0"),
        ({"top_p": 0.0}, "top-p 0.0 must be above 0"),
        ({"top_p": 1.5}, "top-p 1.5 must be above 0"),
        ({"top_p": float("nan")}, "top-p nan must be above 0"),
    ],
)
def test_parameters_outside_their_range_are_refused(params: dict[str, float], message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        SamplingParams(**{"max_tokens": 1, **params})
