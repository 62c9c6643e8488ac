"""One request and its answer on one connection, under a deadline that covers every read and write."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from socket import socket

from kvtool.engine.endpoint.faults import EndpointError

PIECE_BYTES = 1 << 16
MOST_BYTES = 64 << 20  # of one answer: the event of a token is some 300 bytes
DONE = b"[DONE]"
AFTER_DONE_S = 0.2  # that a server may take to end a stream that it called done


@dataclass(frozen=True, slots=True)
class Exchange:
    """A response whose body is still to be read. The connection forgets its socket where the server closes it."""

    connection: HTTPConnection
    response: HTTPResponse
    socket: socket
    deadline_s: float

    @property
    def reusable(self) -> bool:
        """Whether the connection stays open, and nothing of this answer is left in it."""
        return self.response.isclosed() and not self.response.will_close

    def pieces(self) -> Iterator[bytes]:
        """As they come, until the end, or until the stream calls itself done and ends no more. Raises EndpointError for
        one that has no end, TimeoutError at the deadline."""
        total, tail, done = 0, b"", False
        while True:
            wait(self.socket, time.monotonic() + AFTER_DONE_S if done else self.deadline_s)
            try:
                piece = self.response.read1(PIECE_BYTES)
            except TimeoutError:
                if done:
                    return
                raise
            if not piece:
                return
            yield piece
            total += len(piece)
            tail = (tail + piece)[-len(DONE) - 8 :]
            if total > MOST_BYTES or done:
                raise EndpointError("endless", f"the answer has no end: {total:,} bytes so far")
            done = DONE in tail


def ask(
    connection: HTTPConnection, method: str, path: str, body: bytes | None, headers: dict[str, str], deadline_s: float
) -> Exchange:
    """Send a request and wait for the head of its response. Raises OSError or HTTPException."""
    if connection.sock is None:
        connection.connect()
    own: socket = connection.sock
    wait(own, deadline_s)
    connection.request(method, path, body=body, headers=headers)
    return Exchange(connection, connection.getresponse(), own, deadline_s)


def wait(own: socket, deadline_s: float) -> None:
    """Let the socket wait until the deadline. Raises TimeoutError where it is over."""
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    own.settimeout(left_s)
