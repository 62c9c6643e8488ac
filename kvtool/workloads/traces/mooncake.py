"""Mooncake's traces: one JSON object a line, times in milliseconds, 512-token blocks whose ids stand for prefixes.

As released with FAST '25 in kvcache-ai/Mooncake, FAST25-release/traces.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from kvtool.workloads.traces.base import TraceFormat, TraceRequest, checked, undecodable
from kvtool.workloads.traces.source import TraceSource


class _Line(msgspec.Struct, frozen=True, gc=False):
    timestamp: float
    input_length: int
    hash_ids: list[int]
    output_length: int = 0
    block_size: int | None = None
    session_id: str | int = ""


def read(source: TraceSource, block_size: int) -> Iterator[TraceRequest]:
    """The requests in the file's order. Raises KvtoolError naming the line that cannot be decoded."""
    decoder = msgspec.json.Decoder(_Line)
    for number, text in source.lines():
        try:
            line = decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
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
            ),
        )


def recognises(head: bytes) -> bool:
    """Its first line has blocks and a length, and no chat."""
    first = head.split(b"\n", 1)[0]
    return b'"hash_ids"' in first and b'"input_length"' in first and b'"chat_id"' not in first


MOONCAKE = TraceFormat("mooncake", block_size=512, chained=True, recognises=recognises, read=read)
