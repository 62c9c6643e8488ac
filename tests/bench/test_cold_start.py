"""What happens once is done before the first request and told apart: no sample has a capture in it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvtool.bench.cases import latency, prefix
from kvtool.bench.cases.base import Setup
from kvtool.bench.cases.latency import Cell, Latency
from kvtool.bench.cases.no_cache import Race
from kvtool.bench.cases.prefix import prefix_case
from kvtool.engine import engine as engines
from kvtool.engine.engine import Engine
from kvtool.engine.graphs.capture import Step
from kvtool.engine.loaded import LoadedModel
from kvtool.machine.interleaved import Windows
from kvtool.results import AnyCase, ColdStart
from tests.bench.test_bench import FAST, LATENCY, PREFIX
from tests.bench.tiny_model import loaded


def setup(num_iters_warmup: int = 1) -> Setup:
    windows = Windows("cpu", torch.float32, FAST)
    return Setup(loaded=loaded(), windows=windows, num_iters=3, num_iters_warmup=num_iters_warmup)


def latency_case(setup: Setup, options: Latency, batch_size: int) -> AnyCase:
    (case,) = Cell(setup, options, input_len=20, batch_size=batch_size).measure().cases
    return case


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What an engine does, in order, on a machine whose decode steps can be captured."""
    seen: list[str] = []

    def capture(step: Step, generator: torch.Generator) -> Step:
        seen.append("capture")
        return step

    add, sample_of = Engine.add, latency.sample_of

    def traced_add(engine: Engine, *arguments: object, **named: object) -> object:
        seen.append("request")
        return add(engine, *arguments, **named)

    def traced_sample(*arguments: object, **named: object) -> object:
        seen.append("sample")
        return sample_of(*arguments, **named)

    monkeypatch.setattr(LoadedModel, "capturable", True)
    monkeypatch.setattr(engines, "CudaCapture", lambda: capture)
    monkeypatch.setattr(Engine, "add", traced_add)
    for module in (latency, prefix):
        monkeypatch.setattr(module, "sample_of", traced_sample)
    return seen


@pytest.mark.parametrize(
    ("warmup", "options", "graphs"),
    [
        (1, LATENCY, 1),  # a batch decodes together to its end
        (0, LATENCY, 1),
        (0, replace(LATENCY, concurrency=3, num_prompts=7), 3),  # 1, 2 and 3 in 4
        (0, replace(LATENCY, request_rate=500.0, num_prompts=9), 5),  # any number up to 9
    ],
)
def test_a_latency_case_captures_before_its_first_request(
    events: list[str], warmup: int, options: Latency, graphs: int
) -> None:
    case = latency_case(setup(warmup), options, batch_size=3)
    assert events[:graphs] == ["capture"] * graphs
    assert "capture" not in events[graphs:]
    assert case.inputs["graphs"] is True
    assert case.cold_start.graphs == graphs
    assert case.cold_start.capture_s > 0.0
    assert case.cold_start.jit_s is None, "torch compiles nothing"
    assert case.check.outputs_equal


def test_a_prefix_case_captures_nothing_between_its_samples(events: list[str]) -> None:
    (case,) = prefix_case(setup(), PREFIX, hit_rate=0.5).cases
    assert events.count("capture") == 4  # of either arm: with logits for the check, and without
    assert "capture" not in events[events.index("sample") :]
    assert case.check.outputs_equal
    assert case.cold_start.graphs == 2


def test_ways_to_keep_a_cache_are_all_launched_alike(events: list[str]) -> None:
    cases = Race(setup(), input_len=16, output_len=5).measure().cases
    assert "capture" not in events
    assert {case.inputs["graphs"] for case in cases} == {False}


def test_where_nothing_is_captured_nothing_is_told() -> None:
    case = latency_case(setup(), LATENCY, batch_size=1)
    assert (case.cold_start, case.inputs["graphs"]) == (ColdStart(), False)
