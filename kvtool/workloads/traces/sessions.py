"""Sessions of coding agents as kv-cache-tester records them: one JSON a session, sub-agents nested in it.

From callanjfox/kv-cache-tester. A file holds one session, or one a line; a folder holds a file each. Times are seconds
after the session's start, and all sessions of a folder start together. Hash ids are a session's own unless it says
`"hash_id_scope": "global"`; a sub-agent shares its session's ids. Only whole blocks have an id.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from kvtool.workloads.traces.base import TraceFormat, TraceRequest, checked, undecodable
from kvtool.workloads.traces.source import TraceSource

ID_BITS = 40  # ids of a session, above which its number stands


class _Entry(msgspec.Struct, frozen=True, rename={"input_tokens": "in", "output_tokens": "out"}):
    """A request, or with `type` subagent the requests of one."""

    t: float
    type: str
    input_tokens: int = 0
    output_tokens: int = 0
    hash_ids: list[int] = msgspec.field(default_factory=list)
    agent_id: str = ""
    requests: list[_Entry] = msgspec.field(default_factory=list)


class _Session(msgspec.Struct, frozen=True):
    requests: list[_Entry]
    id: str = ""
    block_size: int | None = None
    hash_id_scope: str = "local"


def read(source: TraceSource, block_size: int) -> Iterator[TraceRequest]:
    """The requests of each session by time, one session after the other. Raises KvtoolError naming what cannot be read.

    `line` is the number of the request.
    """
    number = 0
    for index, (where, session) in enumerate(_sessions(source)):
        offset = 0 if session.hash_id_scope == "global" else (index + 1) << ID_BITS
        requests = sorted(_flat(session.requests, session.id or where), key=lambda item: item[0])
        for time_s, entry, name in requests:
            number += 1
            if any(not 0 <= block < 1 << ID_BITS for block in entry.hash_ids):
                raise undecodable(source, number, f"hash ids of {where} must be from 0 to 2**{ID_BITS}", "request")
            request = TraceRequest(
                line=number,
                arrival_s=time_s,
                input_tokens=entry.input_tokens,
                output_tokens=entry.output_tokens,
                block_size=session.block_size or block_size,
                block_ids=[offset + block for block in entry.hash_ids],
                session=name,
            )
            yield checked(source, request, "request")


def _flat(entries: list[_Entry], name: str, start_s: float = 0.0) -> Iterator[tuple[float, _Entry, str]]:
    """Requests with their times and agents. A sub-agent's times count from the session, or, in older files, from its
    own start: those before it are of the second kind.
    """
    for position, entry in enumerate(entries):
        time_s = entry.t if entry.t >= start_s else start_s + entry.t
        if entry.type == "subagent":
            yield from _flat(entry.requests, f"{name}/{entry.agent_id or position}", time_s)
        else:
            yield time_s, entry, name


def _sessions(source: TraceSource) -> Iterator[tuple[str, _Session]]:
    decoder = msgspec.json.Decoder(_Session)
    for name, data in source.contents():
        pieces = [data]
        if len(lines := data.split(b"\n")) > 1 and lines[0].rstrip().endswith(b"}"):
            pieces = lines
        for number, piece in enumerate(pieces, 1):
            if piece.strip():
                yield _named(name, number, len(pieces)), _decoded(source, decoder, piece, name, number)


def _named(name: str, number: int, count: int) -> str:
    return name if count == 1 else f"{name}:{number}"


def _decoded(
    source: TraceSource, decoder: msgspec.json.Decoder[_Session], piece: bytes, name: str, number: int
) -> _Session:
    try:
        return decoder.decode(piece)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise undecodable(source, number, f"{name}: {error}", "session") from error


def recognises(head: bytes) -> bool:
    """It begins with an object of requests, each with a time `t`."""
    return head.lstrip().startswith(b"{") and b'"requests"' in head and b'"t"' in head


SESSIONS = TraceFormat(
    "sessions", block_size=64, chained=True, recognises=recognises, read=read, whole_blocks=True, own_clocks=True
)
