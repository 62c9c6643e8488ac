"""A trace out, in Mooncake's form: one JSON object a line, packed where the name ends in .gz."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from math import inf
from pathlib import Path

import msgspec

from kvtool.system.files import write_atomic
from kvtool.workloads.traces.base import TraceRequest


def write_trace(path: Path, requests: Iterable[TraceRequest]) -> None:
    """Every line names its block size, so that a reader needs to know nothing else. Raises KvtoolError."""
    encoder = msgspec.json.Encoder()
    data = b"".join(encoder.encode(_line(request)) + b"\n" for request in requests)
    # No time in the header: the same trace is the same bytes.
    write_atomic(path, gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data)


def _line(request: TraceRequest) -> dict[str, object]:
    session = {"session_id": request.session} if request.session else {}
    return {
        "timestamp": round(request.arrival_s * 1e3),
        "input_length": request.input_tokens,
        "output_length": request.output_tokens,
        "hash_ids": request.block_ids,
        "block_size": request.block_size,
        **session,
        **_priority(request),
    }


def _priority(request: TraceRequest) -> dict[str, object]:
    if request.retention is None:
        return {}
    duration_s = request.retention.duration_s
    lasts = {} if duration_s == inf else {"priority_duration_ms": round(duration_s * 1e3)}
    return {"priority": request.retention.priority, **lasts}
