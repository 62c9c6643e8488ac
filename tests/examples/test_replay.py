"""The replay's own scripts: what they say is equal and near, and how fast they find it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

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
    hits: int, ttft_ms: float, agrees: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    against_bench = script("against_bench")
    clock = {"hit_tokens": hits, "ttft_ms": {"p50": ttft_ms}, "ttft_p50_range_ms": [90.0, 110.0]}
    case = {
        "part": "workload", "inputs": {"num_prompts": 16}, "workload": {"hit_tokens": 640, "scale": ""},
        "metrics": {"ttft_ms": {"p50": 100.0}},
    }  # fmt: skip
    documents: dict[str, Any] = {"trace": {}, "bench": {"cases": [case]}, "replay": {"tiers": [clock]}}
    monkeypatch.setattr(against_bench, "kvtool", lambda command, *rest: documents[command])
    assert against_bench.compare(tmp_path) is agrees


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
