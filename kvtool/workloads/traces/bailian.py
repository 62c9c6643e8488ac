"""Qwen-Bailian's traces: one JSON object a line, times in seconds, 16-token blocks, chats that go on from a parent.

From alibaba-edu/qwen-bailian-usagetraces-anon. Its ids are hashes of a block's own tokens, not of the prefix, so the
same id after different ids is no fault.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from kvtool.workloads.traces.base import TraceFormat, TraceRequest, checked, undecodable
from kvtool.workloads.traces.source import TraceSource

NO_PARENT = -1


class _Line(msgspec.Struct, frozen=True, gc=False):
    chat_id: int
    timestamp: float
    input_length: int
    hash_ids: list[int]
    output_length: int = 0
    parent_chat_id: int = NO_PARENT


def read(source: TraceSource, block_size: int) -> Iterator[TraceRequest]:
    """The requests in the file's order; a chat's session is its first chat. Raises KvtoolError naming the line."""
    decoder = msgspec.json.Decoder(_Line)
    roots: dict[int, int] = {}
    for number, text in source.lines():
        try:
            line = decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise undecodable(source, number, error) from error
        root = roots.get(line.parent_chat_id, line.chat_id)
        roots[line.chat_id] = root
        yield checked(
            source,
            TraceRequest(
                line=number,
                arrival_s=line.timestamp,
                input_tokens=line.input_length,
                output_tokens=line.output_length,
                block_size=block_size,
                block_ids=line.hash_ids,
                session=str(root),
            ),
        )


def recognises(head: bytes) -> bool:
    """Its first line has blocks and a chat."""
    first = head.split(b"\n", 1)[0]
    return b'"hash_ids"' in first and b'"chat_id"' in first


BAILIAN = TraceFormat("bailian", block_size=16, chained=False, recognises=recognises, read=read)
