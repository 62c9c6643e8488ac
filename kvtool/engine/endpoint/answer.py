"""A stream of events to what it says: when each token came, what the server counted, and what went wrong.

Tokens are counted by the server's usage, never by events: one may bring two tokens, or none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from kvtool.engine.endpoint.client import Stream
from kvtool.engine.endpoint.faults import EndpointError, server_words, struck
from kvtool.engine.endpoint.sse import events


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @property
    def text(self) -> str:
        return f"{self.reasoning_content or self.reasoning or ''}{self.content or ''}"


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None

    @property
    def said(self) -> str:
        return self.text or (self.delta.text if self.delta is not None else "")

    @property
    def brings_token(self) -> bool:
        """Text, or a token whose text is not whole yet. The first event of a chat has a role, the last one may have
        only the reason of its end: neither is a token."""
        opens = self.delta is not None and self.delta.role is not None
        return bool(self.said) or (self.finish_reason is None and not opens)


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None

    @property
    def cached_tokens(self) -> int | None:
        return None if self.prompt_tokens_details is None else self.prompt_tokens_details.cached_tokens


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = msgspec.field(default_factory=list)
    usage: _Usage | None = None
    error: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Of one request. `token_s` are the times at which events with tokens came, in the client's seconds; counts are the
    server's own. Where there is a `fault`, the rest is what came before it."""

    sent_s: float
    ended_s: float
    token_s: list[float] = field(default_factory=list)
    text: str = ""
    token_ids: list[int] | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int | None = None
    fault: EndpointError | None = None

    @property
    def gaps_s(self) -> list[float]:
        """Between two events with tokens."""
        return [b - a for a, b in zip(self.token_s, self.token_s[1:], strict=False)]


def read_answer(stream: Stream) -> Answer:
    """What a stream says. It raises nothing: what is wrong with it stands in `fault`."""
    found = _Reading()
    fault = stream.fault
    try:
        for time_s, data in events(stream.pieces):
            if not found.take(time_s, data):
                break
    except EndpointError as wrong:
        fault = fault or EndpointError(wrong.kind, struck(str(wrong), stream.key))
    return Answer(
        sent_s=stream.sent_s,
        ended_s=stream.pieces[-1][0] if stream.pieces else stream.sent_s,
        token_s=found.token_s,
        text="".join(found.texts),
        token_ids=found.token_ids or None,
        prompt_tokens=found.usage.prompt_tokens if found.usage else 0,
        output_tokens=found.usage.completion_tokens if found.usage else 0,
        cached_tokens=found.usage.cached_tokens if found.usage else None,
        fault=fault or found.missing(),
    )


class _Reading:
    """What the events have told so far."""

    def __init__(self) -> None:
        self.token_s: list[float] = []
        self.texts: list[str] = []
        self.token_ids: list[int] = []
        self.usage: _Usage | None = None
        self._ended = False

    def take(self, time_s: float, data: bytes) -> bool:
        """One event; False for the one that ends the stream. Raises EndpointError for what is no chunk."""
        if data.strip() == b"[DONE]":
            self._ended = True
            return False
        chunk = _chunk(data)
        if chunk.error is not None:
            raise EndpointError("server", f"the server broke off: {server_words(data)}")
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices:
            self._ended = self._ended or choice.finish_reason is not None
            self.token_ids += choice.token_ids or []
            if choice.brings_token:
                self.token_s.append(time_s)
                self.texts.append(choice.said)
        return True

    def missing(self) -> EndpointError | None:
        """What a whole answer would have had."""
        if not self.token_s:
            return EndpointError("empty", "the stream ended without a token")
        if not self._ended:
            return EndpointError("cut", f"the stream ended after {len(self.token_s)} events, before it was finished")
        if self.usage is None or not self.usage.completion_tokens:
            return EndpointError(
                "no usage", "the server counts no tokens (usage, by stream_options.include_usage): events are no count"
            )
        return None


_DECODER = msgspec.json.Decoder(_Chunk)


def _chunk(data: bytes) -> _Chunk:
    """Raises EndpointError, with the data that is no chunk."""
    try:
        return _DECODER.decode(data)
    except UnicodeDecodeError:
        raise EndpointError("encoding", f"the server sends bytes that are no UTF-8: {data[:40]!r}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        if not _is_text(data):
            raise EndpointError("encoding", f"the server sends bytes that are no UTF-8: {data[:40]!r}") from None
        raise EndpointError("json", f"the server sends an event that is no chunk ({error}): {data[:40]!r}") from None


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
