"""Made traces: shared where it was asked for, with the published statistics, the same bytes for the same seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtool.replay.accesses import read_accesses
from kvtool.replay.curves import Curve
from kvtool.replay.loops.fastest import core
from kvtool.system.errors import KvtoolError
from kvtool.workloads.making.make import make_trace
from kvtool.workloads.making.options import DEFAULTS, Making
from kvtool.workloads.traces import open_trace
from kvtool.workloads.traces.base import TraceRequest
from kvtool.workloads.traces.check import check_trace
from kvtool.workloads.traces.statistics import session_statistics
from kvtool.workloads.traces.write import write_trace

# DualPath, arXiv 2602.21548, section 6.1: means of 500 trajectories cut at these lengths.
PUBLISHED = {
    32768: (60, 608, 148, 28639, 17183),
    49152: (106, 474, 172, 42607, 25120),
    65536: (157, 429, 176, 55958, 32721),
}


@pytest.mark.parametrize("longest", PUBLISHED)
def test_agents_have_the_published_means(longest: int) -> None:
    found = session_statistics(make_trace(Making(kind="agents", num_sessions=60, max_len=longest, block_size=512)))
    turns, append, answer, total, context = PUBLISHED[longest]
    assert found["turns"] == pytest.approx(turns, rel=0.05)
    assert found["append_tokens"] == pytest.approx(append, rel=0.1)
    assert found["answer_tokens"] == pytest.approx(answer, rel=0.1)
    assert found["total_tokens"] == pytest.approx(total, rel=0.02)
    assert found["prompt_tokens"] == pytest.approx(context, rel=0.05)


@pytest.mark.parametrize("kind", DEFAULTS)
def test_a_trace_is_sound_and_the_same_seed_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    small = Making(kind=kind, num_sessions=4, request_rate=2.0, burstiness=0.5)
    for name in ("a.jsonl", "b.jsonl"):
        write_trace(tmp_path / name, make_trace(small))
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    document = check_trace(open_trace(tmp_path / "a.jsonl"))
    assert document.findings == []
    assert document.trace.block_size == 64


def hits(requests: list[TraceRequest], tmp_path: Path) -> list[int]:
    write_trace(tmp_path / "made.jsonl.gz", requests)
    accesses = read_accesses(open_trace(tmp_path / "made.jsonl.gz"), core())
    return Curve(core(), accesses, "lru", sizes=None, first=0).request_hits(None).tolist()


def test_a_users_items_share_the_history_and_nothing_else(tmp_path: Path) -> None:
    made = make_trace(Making(kind="ranking", num_sessions=3, items=5, prefix_len=640, input_len=100, block_size=64))
    by_user: dict[str, list[int]] = {}
    for request, hit in zip(made, hits(made, tmp_path), strict=True):
        by_user.setdefault(request.session, []).append(hit)
    assert list(by_user.values()) == [[0, 10, 10, 10, 10]] * 3


def test_a_turn_hits_the_whole_blocks_of_the_turn_before(tmp_path: Path) -> None:
    made = make_trace(Making(kind="multi-turn", num_sessions=5, prefix_len=0, block_size=16))
    before: dict[str, int] = {}
    for request, hit in zip(made, hits(made, tmp_path), strict=True):
        assert hit == before.get(request.session, 0) // 16
        before[request.session] = request.input_tokens


def test_an_option_of_another_kind_is_refused() -> None:
    with pytest.raises(KvtoolError, match="--items is not of agents, but of ranking"):
        make_trace(Making(kind="agents", items=3))
    with pytest.raises(KvtoolError, match="did you mean agents"):
        Making(kind="agent")
