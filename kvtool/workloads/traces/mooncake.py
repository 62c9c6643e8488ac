"""Mooncake's traces: one JSON object a line, times in milliseconds, 512-token blocks whose ids stand for prefixes.

As released with FAST '25 in kvcache-ai/Mooncake, FAST25-release/traces. `kvtool trace make` writes them; block_size,
session_id, priority (0 to 100) and priority_duration_ms are kvtool's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

import msgspec

from kvtool.cache.retention import Retention
from kvtool.system.errors import KvtoolError
from kvtool.workloads.traces.base import TraceFormat, TraceRequest, checked, undecodable
from kvtool.workloads.traces.source import TraceSource


class _Line(msgspec.Struct, frozen=True, gc=False):
    timestamp: float
    input_length: int
    hash_ids: list[int]
    output_length: int = 0
    block_size: int | None = None
    session_id: str | int = ""
    priority: int | None = None
    priority_duration_ms: float | None = None


def read(source: TraceSource, block_size: int) -> Iterator[TraceRequest]:
    """The requests in the file's order. Raises KvtoolError naming the line that cannot be decoded."""
    decoder = msgspec.json.Decoder(_Line)
    for number, text in source.lines():
        try:
            line = decoder.decode(text)
            retention = _retention(line)
        except (msgspec.DecodeError, UnicodeDecodeError, KvtoolError) as error:
            raise undecodable(source, number, error) from error
        yield checked(
            source,
            TraceRequest(
                line=number,
                arrival_s=line.timestamp / 1e3,
                input_tokens=line.input_length,
                output_tokens=line.output_length,
                block_size=line.block_size or block_size,
                block_ids=line.hash_ids,
                session=str(line.session_id),
                retention=retention,
            ),
        )


def _retention(line: _Line) -> Retention | None:
    """How important the request is; None where it does not say. Raises KvtoolError for what is no priority."""
    if line.priority is None:
        if line.priority_duration_ms is not None:
            raise KvtoolError("priority_duration_ms without a priority: say which, from 0 to 100")
        return None
    return Retention(line.priority, inf if line.priority_duration_ms is None else line.priority_duration_ms / 1e3)


def recognises(head: bytes) -> bool:
    """Its first line has blocks and a length, and no chat."""
    first = head.split(b"\n", 1)[0]
    return b'"hash_ids"' in first and b'"input_length"' in first and b'"chat_id"' not in first


MOONCAKE = TraceFormat("mooncake", block_size=512, chained=True, recognises=recognises, read=read)
