"""One request and its answer on one connection, under a deadline that covers every read and write."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse, IncompleteRead, InvalidURL
from socket import socket

from kvtool.engine.endpoint.chunks import Chunks
from kvtool.engine.endpoint.faults import EndpointError

PIECE_BYTES = 1 << 16
MOST_BYTES = 64 << 20  # of one answer: the event of a token is some 300 bytes
DONE = b"[DONE]"
NOT_IN_A_PATH = frozenset(map(chr, (*range(0x21), 0x7F)))
AFTER_DONE_S = 0.2  # that a server may take to end a stream that it called done


@dataclass(frozen=True, slots=True)
class Exchange:
    """A response whose body is still to be read."""

    connection: HTTPConnection
    response: HTTPResponse
    socket: socket
    deadline_s: float

    @property
    def reusable(self) -> bool:
        """Whether the connection stays open, and nothing of this answer is left in it."""
        return self.response.isclosed() and not self.response.will_close

    def close(self) -> None:
        """Let the connection go; what is left of the answer is not read."""
        self.response.close()
        self.connection.close()

    def pieces(self) -> Iterator[bytes]:
        """As they come, until the end, or until the stream calls itself done and ends no more. Raises EndpointError for
        one that has no end, TimeoutError at the deadline."""
        total, tail, done = 0, b"", False
        chunks = Chunks() if self.response.chunked else None
        while True:
            wait(self.socket, time.monotonic() + AFTER_DONE_S if done else self.deadline_s)
            try:
                piece = self.response.read1(PIECE_BYTES) if chunks is None else self._of_chunks(chunks)
            except TimeoutError:
                if done:
                    return
                raise
            if not piece:
                return
            yield piece
            if chunks is not None and chunks.ended:
                return
            total += len(piece)
            tail = (tail + piece)[-len(DONE) - 8 :]
            if total > MOST_BYTES or done:
                raise EndpointError("endless", f"the answer has no end: {total:,} bytes so far")
            done = DONE in tail

    def _of_chunks(self, chunks: Chunks) -> bytes:
        """What one read brings of the body, at least a byte; nothing once it has ended. Raises HTTPException."""
        body = b""
        while not body and not chunks.ended:
            raw = self.response.fp.read1(PIECE_BYTES)
            if not raw:
                raise IncompleteRead(b"")
            body = chunks.take(raw)
        if chunks.ended:
            self.response.close()  # its connection stays open
        return body


def ask(
    connection: HTTPConnection, method: str, path: str, body: bytes | None, headers: dict[str, str], deadline_s: float
) -> Exchange:
    """Send a request, in one write, and wait for the head of its response. Raises OSError or HTTPException."""
    if connection.sock is None:
        connection.connect()
    if set(path) & NOT_IN_A_PATH or not path.isascii():
        raise InvalidURL(f"{path[:80]!r} is no path")
    own: socket = connection.sock
    wait(own, deadline_s)
    length = {} if body is None else {"Content-Length": str(len(body))}
    fields = "".join(f"{name}: {value}\r\n" for name, value in (headers | length).items())
    own.sendall(f"{method} {path} HTTP/1.1\r\n{fields}\r\n".encode("ascii") + (body or b""))
    response = HTTPResponse(own, method=method)
    try:
        response.begin()
    except BaseException:
        response.close()
        raise
    return Exchange(connection, response, own, deadline_s)


def wait(own: socket, deadline_s: float) -> None:
    """Let the socket wait until the deadline. Raises TimeoutError where it is over."""
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    own.settimeout(left_s)
