"""A log of requests as JSONL: raw prompts, token ids or chats, as OpenAI's API takes them and gateways write them down.

A line is the request itself, or has it under `body` (OpenAI's batches) or `request`. The time is `timestamp`, `time` or
`created`, seconds or ISO 8601; the session `session_id`, `conversation_id` or `user`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from kvtool.system.errors import KvtoolError
from kvtool.system.files import refuse_deep
from kvtool.workloads.traces.base import undecodable
from kvtool.workloads.traces.source import TraceSource

INNER = ("body", "request")
FORMS = "a line has prompt (text or token ids) or messages, or such a request under body or request"


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One request. Of `text`, `token_ids` and `messages` one is given; `arrival_s` is after the first of the log."""

    line: int
    text: str | None = None
    token_ids: list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[Any] = msgspec.field(default_factory=list)
    arrival_s: float = 0.0
    session: str = ""
    output_tokens: int = 0


class _Line(msgspec.Struct, frozen=True):
    prompt: str | list[int] | None = None
    prompt_token_ids: list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[Any] | None = None
    timestamp: float | str | None = None
    time: float | str | None = None
    created: float | str | None = None
    session_id: str | int | None = None
    conversation_id: str | int | None = None
    user: str | int | None = None
    output_tokens: int | None = None
    usage: dict[str, Any] | None = None


def is_log(head: bytes) -> bool:
    """Whether a file begins as a log with text or token ids."""
    first = head.lstrip().split(b"\n", 1)[0]
    keys = (b'"prompt"', b'"messages"', b'"prompt_token_ids"')
    return first.startswith(b"{") and any(key in first for key in keys)


def read_log(path: Path) -> Iterator[LogEntry]:
    """The requests, line by line. Raises KvtoolError naming the line that is none."""
    source, began_s = TraceSource(path), None
    for number, data in source.lines():
        line = _decoded(source, number, data)
        time_s = _seconds(source, number, line)
        began_s = time_s if began_s is None else began_s
        yield _entry(source, number, line, (time_s or 0.0) - (began_s or 0.0))


def _decoded(source: TraceSource, number: int, data: bytes) -> _Line:
    """The line, of which what stands outside of an inner request counts where the inner one does not say it."""
    try:
        found = msgspec.json.decode(data)
        refuse_deep(found, f"{source.name}, line {number}")
        for key in INNER:
            if isinstance(found, dict) and isinstance(found.get(key), dict):
                found = {**found, **found[key]}
        return msgspec.convert(found, _Line)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise undecodable(source, number, error) from error


def _entry(source: TraceSource, number: int, line: _Line, arrival_s: float) -> LogEntry:
    text = line.prompt if isinstance(line.prompt, str) else None
    ids = line.prompt if isinstance(line.prompt, list) else line.prompt_token_ids
    if text is None and ids is None and line.messages is None:
        raise undecodable(source, number, f"no request: {FORMS}")
    session = next((one for one in (line.session_id, line.conversation_id, line.user) if one is not None), "")
    answered = (line.usage or {}).get("completion_tokens")
    return LogEntry(
        line=number,
        text=text if line.messages is None else None,
        token_ids=ids if line.messages is None and text is None else None,
        messages=line.messages,
        tools=line.tools or [],
        arrival_s=arrival_s,
        session=str(session),
        output_tokens=max(0, line.output_tokens or (answered if isinstance(answered, int) else 0)),
    )


def _seconds(source: TraceSource, number: int, line: _Line) -> float | None:
    """The time of a line; of a number above 1e11 as milliseconds, since seconds have not come so far."""
    given = next((one for one in (line.timestamp, line.time, line.created) if one is not None), None)
    if given is None:
        return None
    try:
        value = datetime.fromisoformat(given).timestamp() if isinstance(given, str) else float(given)
    except ValueError as error:
        raise undecodable(source, number, f"time {given!r}: {error}") from error
    if not abs(value) < float("inf"):
        raise undecodable(source, number, f"time {given!r} is not a number of seconds")
    return value / 1e3 if abs(value) > 1e11 else value


def of_prompts(paths: list[Path]) -> list[LogEntry]:
    """Files with a prompt each, as a log of them in their order. Raises KvtoolError for what is no UTF-8 text."""
    entries = []
    for number, path in enumerate(paths, 1):
        data = b"".join(piece for _, piece in TraceSource(path).contents())
        try:
            entries.append(LogEntry(line=number, text=data.decode()))
        except UnicodeDecodeError as error:
            raise KvtoolError(f"{path.name} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    return entries
