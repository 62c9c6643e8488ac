"""The race on a CPU: what it reads of others' output, how it pairs turns, and what it says is missing."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parents[2] / "examples" / "cpu" / "race.py"


@pytest.fixture(scope="module")
def race() -> ModuleType:
    spec = spec_from_file_location("race_on_a_cpu", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_step_of_llama_batched_bench(race: ModuleType) -> None:
    # Two lines of llama.cpp's examples/batched-bench README, cut to the fields that are read.
    lines = 'loading\n{"pp": 128, "tg": 128, "pl": 1, "t_tg": 3.1}\n{"pp": 128, "tg": 128, "pl": 2, "t_tg": 5.038}\n'
    assert race.decode_ms(lines) == pytest.approx(5.038 / 128 * 1e3)


def test_ratios_are_of_times_in_the_same_round(race: ModuleType) -> None:
    """A machine that is twice as slow in one round changes no ratio."""
    times = {"kvtool": iter([10.0, 20.0, 10.0]), "llama.cpp": iter([20.0, 40.0, 20.0])}
    contestants = {name: lambda shape, left=left: next(left) for name, left in times.items()}
    own, other = race.race(contestants, race.Shape(1, 512, 32), 3)
    assert own.split()[-4:] == ["10.00", "ms", "a", "token"]
    assert other.endswith("kvtool takes 0.50 of it")


def test_a_peer_that_is_not_here_is_named(race: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match=r"llama-batched-bench is not here: build llama\.cpp"):
        race.llama_cpp("model.gguf", 2)
    with pytest.raises(SystemExit, match=r"nowhere/bin/vllm is not here: install vLLM"):
        race.vllm("nowhere", "folder", 2)
