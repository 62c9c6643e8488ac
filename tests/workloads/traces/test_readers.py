"""Each format as its publisher writes it, what is refused, and gzip of each."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvtool.cache.retention import Retention
from kvtool.system.errors import KvtoolError
from kvtool.workloads.traces import TraceRequest, open_trace
from kvtool.workloads.traces.write import write_trace

SLICE = Path(__file__).parents[2] / "data" / "traces" / "mooncake_conversation_200.jsonl"

# Lines as the publishers' own pages print them.
BAILIAN = (
    '{"chat_id": 55, "parent_chat_id": -1, "timestamp": 61.0, "input_length": 20, "output_length": 12, "type": "text",'
    ' "turn": 1, "hash_ids": [1089, 1090]}\n'
    '{"chat_id": 159, "parent_chat_id": 55, "timestamp": 61.114, "input_length": 40, "output_length": 132,'
    ' "type": "text", "turn": 2, "hash_ids": [1089, 1090, 6326]}\n'
)
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:15:46.6805900,374,44\r\n"
    "2023-11-16 18:15:50.9951690,396,109\r\n"
)


def session(**more: Any) -> dict[str, Any]:
    request = {"t": 0.0, "type": "n", "model": "m", "in": 130, "out": 8, "hash_ids": [1, 2, 3], "stop": "tool_use"}
    child = {**request, "t": 5.0, "hash_ids": [1, 2, 9]}
    agent = {"t": 4.0, "type": "subagent", "agent_id": "a1", "status": "completed", "requests": [child]}
    last = {**request, "t": 9.5, "hash_ids": [1, 2, 3, 4], "in": 200}
    return {"id": "trace_0001", "models": ["m"], "block_size": 64, "requests": [request, agent, last], **more}


def stored(hashes: list[int], parent: int | None, **more: Any) -> dict[str, Any]:
    tokens = list(range(16 * len(hashes)))
    return {"type": "BlockStored", "block_hashes": hashes, "parent_block_hash": parent, "token_ids": tokens,
            "block_size": 16, "lora_id": None, "medium": "GPU", "lora_name": None, **more}  # fmt: skip


def recording(*batches: list[Any], framed: bool = False) -> bytes:
    payloads = [msgspec.msgpack.encode([100.0 + at, events]) for at, events in enumerate(batches)]
    return b"".join(len(p).to_bytes(4, "big") + p if framed else p for p in payloads)


def read(tmp_path: Path, data: str | bytes, name: str = "trace.jsonl") -> list[TraceRequest]:
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return list(open_trace(path))


def test_mooncake() -> None:
    trace = open_trace(SLICE)
    requests = list(trace)
    assert trace.format.name == "mooncake"
    assert trace.sha256 == hashlib.sha256(SLICE.read_bytes()).hexdigest()
    assert len(requests) == 200
    assert requests[0] == TraceRequest(1, 0.0, 6758, 500, 512, list(range(14)))
    assert all(len(request.block_ids) == -(-request.input_tokens // 512) for request in requests)


def test_priorities_are_read_and_written_as_they_were(tmp_path: Path) -> None:
    plain = '{"timestamp": 0, "input_length": 4, "hash_ids": [1]}\n'
    named = plain.replace("}", ', "priority": 80}')
    ending = plain.replace("}", ', "priority": 0, "priority_duration_ms": 1500}')
    requests = read(tmp_path, plain + named + ending)
    assert [request.retention for request in requests] == [None, Retention(80), Retention(0, 1.5)]
    write_trace(tmp_path / "again.jsonl", requests)
    assert [request.retention for request in open_trace(tmp_path / "again.jsonl")] == [r.retention for r in requests]
    for wrong, said in (("101", "priority 101 must be"), ("null", "priority_duration_ms without a priority")):
        with pytest.raises(KvtoolError, match=f"line 2: {said}"):
            read(tmp_path, plain + plain.replace("}", f', "priority": {wrong}, "priority_duration_ms": 9}}'))


def test_bailian_times_are_seconds_and_a_chat_goes_on_from_its_parent(tmp_path: Path) -> None:
    first, second = read(tmp_path, BAILIAN)
    assert (second.arrival_s, second.input_tokens, second.block_size) == (61.114, 40, 16)
    assert first.session == second.session == "55"


def test_azure_has_lengths_only(tmp_path: Path) -> None:
    first, second = read(tmp_path, AZURE, "azure.csv")
    assert (first.line, first.arrival_s, first.input_tokens, first.output_tokens) == (2, 0.0, 374, 44)
    assert second.arrival_s == pytest.approx(4.314579, abs=1e-6)
    assert first.block_ids == []


def test_a_session_with_a_sub_agent(tmp_path: Path) -> None:
    requests = read(tmp_path, json.dumps(session(), indent=1), "trace_0001.json")
    assert [request.session for request in requests] == ["trace_0001", "trace_0001/a1", "trace_0001"]
    assert [request.arrival_s for request in requests] == [0.0, 5.0, 9.5]
    assert requests[0].block_ids[:2] == requests[1].block_ids[:2]
    assert requests[0].block_size == 64


def test_times_of_a_sub_agent_before_its_start_count_from_it(tmp_path: Path) -> None:
    described = session()
    described["requests"][1]["requests"][0]["t"] = 1.5
    assert [r.arrival_s for r in read(tmp_path, json.dumps(described))] == [0.0, 5.5, 9.5]


@pytest.mark.parametrize(("scope", "shared"), [("local", False), ("global", True)])
def test_sessions_share_ids_only_when_they_say_so(tmp_path: Path, scope: str, shared: bool) -> None:
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(json.dumps(session(hash_id_scope=scope)))
    requests = list(open_trace(tmp_path))
    assert len(requests) == 6
    assert (requests[0].block_ids == requests[3].block_ids) is shared


@pytest.mark.parametrize("framed", [False, True])
def test_kv_events_become_requests(tmp_path: Path, framed: bool) -> None:
    """A chain that grows is one request; blocks below its middle are another that hit what is above."""
    data = recording(
        [stored([11, 12], None)],
        [stored([13], 12), stored([21], 11)],
        [{"type": "BlockRemoved", "block_hashes": [13], "medium": "GPU"}, stored([13], 12)],
        [stored([99], 12, medium="CPU"), stored([98], 12, group_idx=1, kv_cache_spec_kind="sliding_window")],
        [{"type": "AllBlocksCleared"}],
        framed=framed,
    )
    first, branch, again = read(tmp_path, data, "events.msgpack")
    assert first.block_ids == [0, 1, 2]
    assert branch.block_ids == [0, 3]
    assert again.block_ids == [0, 1, 2]
    assert (first.input_tokens, first.block_size, first.arrival_s, again.arrival_s) == (48, 16, 0.0, 2.0)


def test_kv_events_of_older_engines_are_arrays(tmp_path: Path) -> None:
    event = ["BlockStored", [b"\x01" * 32, b"\x02" * 32], None, list(range(32)), 16, None, "GPU"]
    (request,) = read(tmp_path, recording([event]), "events.msgpack")
    assert (request.block_ids, request.input_tokens) == ([0, 1], 32)


@pytest.mark.parametrize("data", [SLICE.read_bytes(), BAILIAN.encode(), AZURE.encode(), json.dumps(session()).encode(),
                                  recording([stored([1], None)])], ids=itertools.count())  # fmt: skip
def test_gzip_of_each_reads_the_same(tmp_path: Path, data: bytes) -> None:
    plain, packed = tmp_path / "trace", tmp_path / "trace.gz"
    plain.write_bytes(data)
    packed.write_bytes(gzip.compress(data))
    traces = open_trace(plain), open_trace(packed)
    assert list(traces[0]) == list(traces[1]) != []
    assert traces[0].sha256 == traces[1].sha256


GOOD = '{"timestamp": 1, "input_length": 5, "output_length": 1, "hash_ids": [0]}\n'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD + "{nonsense}\n", "trace.jsonl, line 2: JSON is malformed"),
        (GOOD + "\n" + GOOD.replace("[0]", '["a"]'), "line 3: Expected `int`, got `str`"),
        (GOOD + GOOD.replace("5", "-5"), "line 2: a length of -5 tokens is negative"),
        (GOOD + GOOD.replace("5", "9" * 18), "line 2: a length of more than 1,099,511,627,776 tokens is no request's"),
        (GOOD + '{"timestamp": 1}\n', "line 2: Object missing required field `input_length`"),
        (BAILIAN + '{"chat_id": 1}\n', "line 3: Object missing required field `timestamp`"),
        (AZURE + "yesterday,1,2\n", "line 4: 'yesterday' is not a time as 2023-11-16 18:15:46.6805900"),
        (AZURE + "2023-11-16 18:15:46,1\n", "line 4: not enough values"),
        (json.dumps(session(requests=[{"t": 0}])), "session 1: trace.jsonl: Object missing required field `type`"),
        (recording([stored([1], None)])[:-3], "batch 1: the recording ends within it"),
        (recording([stored([1], None)], framed=True)[:-3], "batch 1: the recording ends within it"),
        (recording([{"type": "BlockStored"}]), "batch 1: Object missing required field `block_hashes`"),
        (recording([["BlockMoved", []]]), "batch 1: Invalid value 'BlockMoved'"),
        ("", "trace.jsonl is empty, which is none of mooncake, bailian"),
        ("hello\n", "trace.jsonl begins with 'hello', which is none of"),
        (gzip.compress(GOOD.encode() * 9, mtime=0)[:-9], "cannot read"),
    ],
    ids=itertools.count(),
)
def test_what_cannot_be_decoded_is_refused_by_its_number(tmp_path: Path, data: str | bytes, message: str) -> None:
    with pytest.raises(KvtoolError) as raised:
        read(tmp_path, data)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 2


def test_a_file_or_a_format_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KvtoolError, match="No such file"):
        open_trace(tmp_path / "none.jsonl")
    with pytest.raises(KvtoolError, match="did you mean mooncake"):
        open_trace(SLICE, form="moncake")
    with pytest.raises(KvtoolError, match="block size 0 must be"):
        open_trace(SLICE, block_size=0)
    with pytest.raises(KvtoolError, match="has no trace in it"):
        open_trace(tmp_path)


def test_the_block_size_can_be_said(tmp_path: Path) -> None:
    assert next(iter(open_trace(SLICE, block_size=256))).block_size == 256
