"""What `kvtool trace check` finds, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvtool.workloads.traces import open_trace
from kvtool.workloads.traces.check import check_trace

SLICE = Path(__file__).parents[2] / "data" / "traces" / "mooncake_conversation_200.jsonl"


def written(tmp_path: Path, *requests: dict[str, object]) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return path


def request(time: float, length: int, *ids: int, **more: object) -> dict[str, object]:
    return {"timestamp": time, "input_length": length, "output_length": 1, "hash_ids": list(ids), **more}


def test_a_published_trace_has_nothing_odd() -> None:
    """Mooncake's traces are sorted, have a block for every 512 tokens, and no broken chain."""
    document = check_trace(open_trace(SLICE))
    assert document.findings == []
    assert (document.trace.requests, document.trace.block_size) == (200, 512)
    assert document.trace.total_blocks == sum(len(r.block_ids) for r in open_trace(SLICE))


def test_every_line_is_named(tmp_path: Path) -> None:
    path = written(
        tmp_path, request(0, 1024, 1, 2), request(0, 1536, 1, 3, 2), request(5, 512, 2), request(4, 512, 1, 2)
    )
    found = [(finding.kind, finding.line) for finding in check_trace(open_trace(path)).findings]
    assert found == [("chain", 2), ("chain", 3), ("time_unsorted", 4), ("block_count", 4)]


def test_a_log_with_the_newest_first_is_one_finding(tmp_path: Path) -> None:
    path = written(tmp_path, *(request(-at, 512, at) for at in range(20)))
    (finding,) = check_trace(open_trace(path)).findings
    assert (finding.kind, finding.line) == ("time_reversed", None)
    assert finding.detail == "times fall 19 times in 20 requests"
    assert "--sort-by-time" in finding.remedy


def test_ids_of_tokens_alone_may_stand_anywhere(tmp_path: Path) -> None:
    """Qwen-Bailian hashes a block's own tokens: the same block behind other blocks is no fault."""
    path = written(tmp_path, request(0, 32, 1, 2, chat_id=1), request(1, 32, 3, 2, chat_id=2))
    document = check_trace(open_trace(path))
    assert document.findings == []
    assert "chains are not checked" in document.assumptions[0]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n", "lengths_only"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no_requests"),
    ],
)
def test_a_trace_that_cannot_be_replayed_says_so(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(text)
    assert [finding.kind for finding in check_trace(open_trace(path)).findings] == [kind]


def test_sessions_begin_at_0_and_have_whole_blocks_alone(tmp_path: Path) -> None:
    """As kv-cache-tester records them: 130 tokens are two blocks of 64, and the next session's clock starts anew."""
    for name in ("a", "b"):
        turns = [{"t": t, "type": "n", "in": 130, "out": 1, "hash_ids": [1, 2]} for t in (0.0, 7.0)]
        (tmp_path / f"{name}.json").write_text(json.dumps({"id": name, "block_size": 64, "requests": turns}))
    assert check_trace(open_trace(tmp_path)).findings == []
    turns[0]["hash_ids"] = [1, 2, 3]
    (tmp_path / "b.json").write_text(json.dumps({"id": "b", "block_size": 64, "requests": turns}))
    (finding,) = check_trace(open_trace(tmp_path)).findings
    assert (finding.kind, finding.line) == ("block_count", 3)
