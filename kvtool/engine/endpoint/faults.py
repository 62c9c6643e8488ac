"""What can go wrong with a request, in a word for counting and a line for reading."""

from __future__ import annotations

import contextlib
from http.client import HTTPException, IncompleteRead, RemoteDisconnected
from typing import Any

import msgspec

from kvtool.system.errors import DeviceError, one_line

LONGEST = 200
FATAL = frozenset({"unreachable", "status 401", "status 403", "status 404", "redirect"})
"""After which no other request can go better."""


class EndpointError(DeviceError):
    """`kind`: unreachable | closed | timeout | redirect | endless | protocol | status N | encoding | json | server |
    empty | no usage | cut."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def told(error: Exception, origin: str) -> EndpointError:
    """What the system, or HTTP's grammar, says of a failed exchange."""
    if isinstance(error, RemoteDisconnected | IncompleteRead | ConnectionResetError | BrokenPipeError):
        return EndpointError("closed", f"{origin} closed the connection before its answer was whole")
    if isinstance(error, OSError):
        return EndpointError("unreachable", f"no server answers at {origin}: {error.strerror or error}")
    what = "is no HTTP" if isinstance(error, HTTPException) else "cannot be read as HTTP"
    return EndpointError("protocol", one_line(f"what {origin} sends {what}: {type(error).__name__} {error}", LONGEST))


def of_status(status: int, body: bytes, key: str | None) -> EndpointError:
    """Of an answer that is no success, with the server's own words. They never hold the key."""
    words = server_words(body, key)
    means = {401: "the key is missing or wrong (--api-key-env)", 403: "the key may not do this (--api-key-env)"}
    more = f": {words}" if words else ""
    return EndpointError(f"status {status}", f"the server answers {status}: {means[status]}{more}"
                         if status in means else f"the server answers {status}{more}")  # fmt: skip


def server_words(body: bytes, key: str | None = None) -> str:
    """The message in a JSON error, else the text; in one line, the key struck out where a server repeats it."""
    text = body[: 1 << 14].decode("utf-8", errors="replace")
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = _message(msgspec.json.decode(body)) or text
    return one_line(struck(text, key), LONGEST)


def struck(text: str, key: str | None) -> str:
    """The text without the key, where a server repeats it."""
    return text.replace(key, "***") if key else text


def _message(found: Any) -> str:
    """OpenAI's `{"error": {"message": ...}}`, vLLM's older `{"message": ...}`, FastAPI's `{"detail": ...}`."""
    if isinstance(found, dict):
        for name in ("error", "message", "detail"):
            if name in found:
                return _message(found[name])
        return ""
    return found if isinstance(found, str) else ""
