from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtool.machine import stats

times = st.lists(st.floats(0.001, 1000), min_size=1, max_size=30)


@given(st.lists(times, min_size=2, max_size=5))
def test_the_weighted_median_is_the_median_of_the_repeated_values(clusters: list[list[float]]) -> None:
    import numpy as np

    class Draws:
        """Stands in for the generator, so that the draw is known: the first cluster twice, the last one never."""

        def multinomial(self, n: int, p: object, size: int) -> np.ndarray:
            return np.tile([2, *[1] * (n - 2), 0], (size, 1))

    found = stats._resampled_medians(clusters, Draws())
    repeated = [value for cluster in (clusters[0], *clusters[:-1]) for value in cluster]
    assert found.shape == (stats.NUM_RESAMPLES,)
    assert found.tolist() == pytest.approx([statistics.median(repeated)] * stats.NUM_RESAMPLES)


def test_intervals_cover_a_known_ratio_about_as_often_as_they_say() -> None:
    rng = random.Random(0)
    covered = 0
    for trial in range(100):
        a, b = ([[rng.gauss(mean, 1.0)] for _ in range(20)] for mean in (10.0, 12.0))
        estimate = stats.ratio_of_medians(a, b, seed=trial)
        assert estimate is not None
        covered += estimate.low <= 1.2 <= estimate.high
    assert covered >= 88


def test_noise_between_iterations_widens_the_interval() -> None:
    rng = random.Random(1)
    shared = [[10 + shift] * 8 for shift in (rng.gauss(0, 1) for _ in range(6))]
    alone = [[value] for cluster in shared for value in cluster]
    wide, narrow = stats.ratio_of_medians(shared, shared), stats.ratio_of_medians(alone, alone)
    assert wide is not None
    assert narrow is not None
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_one_cluster_a_side_or_a_zero_gives_no_interval() -> None:
    assert stats.ratio_of_medians([[1.0, 2.0]], [[1.0], [2.0]]) is None
    assert stats.ratio_of_medians([[1.0], [0.0]], [[1.0], [2.0]]) is None
    assert stats.ratio_of_medians([], [[1.0], [2.0]]) is None


def test_pairing_removes_what_both_arms_share() -> None:
    rng = random.Random(2)
    drift = [rng.gauss(100, 20) for _ in range(30)]
    a = [d + rng.gauss(0, 0.1) for d in drift]
    b = [d - 5 + rng.gauss(0, 0.1) for d in drift]
    saved = stats.paired_median_difference(a, b)
    assert -5.2 < saved.low < saved.value < saved.high < -4.8
    ratio = stats.paired_ratio_of_medians(a, b)
    assert ratio.low < ratio.value < ratio.high < 1


def test_intervals_are_the_same_each_time() -> None:
    a, b = [[1.0, 2.0], [3.0]], [[2.0], [2.5]]
    assert stats.ratio_of_medians(a, b, seed=3) == stats.ratio_of_medians(a, b, seed=3)


def test_pairs_must_be_pairs() -> None:
    with pytest.raises(ValueError, match="2 and 1 values"):
        stats.paired_median_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="above 0"):
        stats.paired_ratio_of_medians([0.0], [1.0])


@pytest.mark.parametrize(
    ("value", "low", "high", "lower_is_better", "words"),
    [
        (0.877, 0.85, 0.9, True, "faster by 12.3 %"),
        (1.04, 1.01, 1.08, True, "slower by 4.0 %"),
        (188.224, 180, 190, True, "188x slower"),
        (0.25, 0.2, 0.3, True, "4x faster"),
        (0.25, 0.2, 0.3, False, "4x slower"),
        (1.04, 0.99, 1.08, True, "no difference shown"),
        (1.5, 1.4, 1.6, False, "faster by 50.0 %"),
        (1.0, 1.0, 1.0, True, "same"),
    ],
)
def test_verdicts(value: float, low: float, high: float, lower_is_better: bool, words: str) -> None:
    assert stats.verdict(stats.Estimate(value, low, high), lower_is_better=lower_is_better) == words


def test_students_t_is_that_of_the_tables() -> None:
    """NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2: upper critical values of Student's t."""
    for freedom, confidence, bound in ((4, 0.95, 2.776), (4, 0.998, 7.173), (10, 0.95, 2.228), (100, 0.99, 2.626)):
        assert stats.t_bound(confidence, freedom) == pytest.approx(bound, abs=1e-3)
        assert stats.t_tail(-bound, freedom) == pytest.approx(1 - confidence, rel=1e-3)
    assert stats.t_tail(0.0, 3) == pytest.approx(1.0)


def test_many_tests_err_together_as_often_as_one_would() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm 1979, by hand
    assert stats.holm([0.6, 0.7]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_a_spread_of_few_runs_is_drawn_towards_that_of_its_neighbours() -> None:
    own = stats.spread_between([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    assert own == stats.Spread(0.0, 4)
    assert stats.moderated(own, []) == own
    assert stats.moderated(own, [stats.Spread(0.5, 4), stats.Spread(0.3, 4)]) == stats.Spread(pytest.approx(0.2), 8)
