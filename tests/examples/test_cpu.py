"""The examples on a CPU: what the race reads of others' output, how turns are paired, what is missing."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "cpu"


def loaded(name: str) -> ModuleType:
    spec = spec_from_file_location(f"{name}_on_a_cpu", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def race() -> ModuleType:
    return loaded("race")


def test_times_of_llama_batched_bench(race: ModuleType) -> None:
    # Two lines of llama.cpp's tools/batched-bench/README.md, cut to the fields that are read.
    lines = """loading
{"pp": 128, "tg": 128, "pl": 1, "t_pp": 0.233810, "t_tg": 3.503684}
{"pp": 128, "tg": 128, "pl": 2, "t_pp": 0.422602, "t_tg": 11.106112}
"""
    assert race.times_of(lines) == race.Times(pytest.approx(422.602), pytest.approx(11106.112 / 128))


def test_ratios_are_of_times_in_the_same_round(race: ModuleType) -> None:
    """A machine that is twice as slow in one round changes no ratio."""
    steps = {"kvtool": [10.0, 20.0, 10.0], "llama.cpp": [20.0, 40.0, 20.0]}
    times = {name: iter([race.Times(300.0, step) for step in of_rounds]) for name, of_rounds in steps.items()}
    contestants = {name: lambda shape, left=left: next(left) for name, left in times.items()}
    own, other = race.race(contestants, race.Shape(1, 512, 32), 3)
    assert own.split()[-2:] == ["300.00", "10.00"]
    assert other.split()[-4:] == ["300.00", "1.00x", "20.00", "0.50x"]


def test_a_peer_that_is_not_here_is_named(race: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match=r"llama-batched-bench is not here: build llama\.cpp"):
        race.llama_cpp("model.gguf", 2)
    with pytest.raises(SystemExit, match=r"nowhere/bin/vllm is not here: install vLLM"):
        race.vllm("nowhere", "folder", 2)


def test_a_program_that_dies_is_told_by_its_signal(race: ModuleType) -> None:
    """llama.cpp's path through AMX ends so on machines that hide a part of it: it says nothing itself."""
    with pytest.raises(SystemExit, match=r"^sh was killed by SIGILL: it said nothing$"):
        race.output_of(["sh", "-c", "kill -ILL $$"])
    with pytest.raises(SystemExit, match=r"^sh failed with exit status 3: no such model$"):
        race.output_of(["sh", "-c", "echo loading >&2; echo no such model >&2; exit 3"])
    assert race.fate(128 + 4) == "was killed by SIGILL"
    with pytest.raises(SystemExit, match="told no times"):
        race.times_of("loading\n")


def test_further_options_reach_llama_batched_bench(race: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(race, "required", lambda program, otherwise: program)
    monkeypatch.setattr(
        race, "output_of", lambda command: commands.append(command) or '{"t_pp": 1, "t_tg": 2, "tg": 4}'
    )
    assert race.llama_cpp("m.gguf", 2, ["--no-repack"])(race.Shape(1, 512, 4)) == race.Times(1000.0, 500.0)
    assert commands[0][:3] == ["llama-batched-bench", "-m", "m.gguf"]
    assert commands[0][-1] == "--no-repack"


def test_the_share_of_a_stream_is_of_the_same_round() -> None:
    reading = loaded("reading")
    told = reading.line("decode", 10**9, [0.1, 0.2, 0.1], [0.05, 0.1, 0.05])
    assert told.split() == ["decode", "10.0", "20.0", "0.50"]
