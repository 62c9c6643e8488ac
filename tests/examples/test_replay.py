"""The replay's own scripts: what they say is equal and near, and how fast they find it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

SCRIPTS = Path(__file__).parents[2] / "examples" / "replay"
TRACE = Path(__file__).parents[1] / "data" / "traces" / "mooncake_conversation_200.jsonl"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("hits", "ttft_ms", "agrees"), [(640, 100.0, True), (640, 116.0, False), (656, 100.0, False), (640, 86.0, True)]
)
def test_a_run_and_its_replay_agree_in_hits_and_nearly_in_time(
    hits: int, ttft_ms: float, agrees: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two turns of three requests each, whose medians are 100 ms."""
    clock = SimpleNamespace(hit_tokens=hits, ttft_ms=SimpleNamespace(p50=ttft_ms))
    turns = [[0.09, 0.1, 0.3], [0.08, 0.1, 0.2]]
    assert script("against_bench").agrees([640, 640], turns, [clock] * 2) is agrees
    assert f"engine 100.0 ms, replay {ttft_ms:.1f}: {ttft_ms - 100:+.1f}%" in capsys.readouterr().out


def test_speed_says_what_it_timed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    speed = script("speed")
    monkeypatch.setattr(speed, "own_process", lambda trace: None)  # a process of its own
    monkeypatch.setattr(speed, "TURNS", 1)
    speed.compare(str(TRACE), None)
    assert "15 capacities x lru, fifo, optimal, 5,537 blocks" in capsys.readouterr().out
    speed.stream(64_000)
    total, unique = re.match(r"([\d,]+) blocks, ([\d,]+) unique", capsys.readouterr().out).groups()  # type: ignore[union-attr]
    assert 30_000 < int(total.replace(",", "")) < 130_000
    assert int(unique.replace(",", "")) < int(total.replace(",", "")) / 10
