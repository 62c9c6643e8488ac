from __future__ import annotations

from msgspec.structs import replace

from kvtool.compare.metrics import BY_NAME, clusters_of, measured_samples
from kvtool.results import Case
from tests.compare.example import document


def first_case() -> Case:
    return document().cases[0]


def with_arms(*arms: str) -> Case:
    case = first_case()
    return replace(case, samples=[replace(sample, arm=arm) for arm in arms for sample in case.samples])


def test_the_samples_behind_the_metrics_are_those_of_the_measured_arm() -> None:
    assert {s.arm for s in measured_samples(with_arms("uncached", "cached"))} == {"cached"}
    assert {s.arm for s in measured_samples(with_arms("no_cache", "baseline"))} == {"baseline"}
    assert {s.arm for s in measured_samples(with_arms("contiguous"))} == {"contiguous"}
    assert measured_samples(with_arms("contiguous", "no_cache")) == []


def test_values_are_clustered_by_iteration() -> None:
    clusters = clusters_of(BY_NAME["itl_ms"], first_case())
    assert clusters is not None
    assert [len(cluster) for cluster in clusters] == [6] * 6


def test_a_single_iteration_is_clustered_by_request() -> None:
    clusters = clusters_of(BY_NAME["itl_ms"], document(iterations=1).cases[0])
    assert clusters is not None
    assert [len(cluster) for cluster in clusters] == [3, 3]


def test_samples_that_contradict_the_metrics_do_not_speak_for_them() -> None:
    case = first_case()
    slower = replace(case, metrics=replace(case.metrics, ttft_ms=replace(case.metrics.ttft_ms, p50=1e6)))
    assert clusters_of(BY_NAME["ttft_ms"], case) is not None
    assert clusters_of(BY_NAME["ttft_ms"], slower) is None
    assert clusters_of(BY_NAME["ttft_ms"], replace(case, samples=[])) is None
