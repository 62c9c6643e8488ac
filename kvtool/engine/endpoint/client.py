"""The one HTTP client: threads over the standard library's connections, kept open, with a time on every piece.

Pieces are only read and stamped while they come: what they mean is asked when the stream is over. A redirect is
followed on the same origin alone, so that the key goes nowhere else.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import urljoin, urlsplit

from kvtool import __version__
from kvtool.engine.endpoint.address import PORTS, Address
from kvtool.engine.endpoint.exchange import Exchange, ask
from kvtool.engine.endpoint.faults import EndpointError, of_status, told

CONNECT_S = 10.0
FETCH_S = 60.0  # that anything but a stream may take
MOST_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
KEPT_WHOLE = (307, 308)  # with their method and body
STALE = (ConnectionResetError, BrokenPipeError, ConnectionAbortedError)  # RemoteDisconnected is the first of them

Piece = tuple[float, bytes]
"""When it was read, in seconds of the client's clock, and its bytes."""


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Stream:
    """Pieces as they came in after `sent_s`, and what broke them off, if anything did."""

    sent_s: float
    pieces: list[Piece]
    fault: EndpointError | None = None
    key: str | None = field(default=None, repr=False)  # that no text of a fault may repeat


class Client:
    """Asks one server. Any number of threads may use it; connections that are done wait for the next request."""

    def __init__(
        self,
        address: Address,
        *,
        key: str | None = None,
        timeout_s: float = 600.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.address, self.clock, self.timeout_s = address, clock, timeout_s
        self._key = key
        self._idle: list[HTTPConnection] = []
        self._lock = threading.Lock()

    def fetch(self, method: str, path: str, body: bytes | None = None) -> Reply:
        """A whole answer, whatever its status but a redirect's. Raises EndpointError."""
        with self._asked(method, path, body, min(self.timeout_s, FETCH_S)) as exchange:
            return Reply(exchange.response.status, b"".join(exchange.pieces()))

    def stream(self, path: str, body: bytes) -> Stream:
        """What a POST brings, piece by piece; a status that is no success is the fault of the stream."""
        sent_s, pieces, clock = self.clock(), list[Piece](), self.clock
        try:
            with self._asked("POST", path, body, self.timeout_s) as exchange:
                pieces.extend((clock(), piece) for piece in exchange.pieces())
                status = exchange.response.status
        except EndpointError as fault:
            return Stream(sent_s, pieces, fault)
        if status == 200:
            return Stream(sent_s, pieces, key=self._key)
        return Stream(sent_s, [], of_status(status, b"".join(piece for _, piece in pieces), self._key))

    def failed(self, reply: Reply) -> EndpointError:
        """What a reply that is no success says."""
        return of_status(reply.status, reply.body, self._key)

    def close(self) -> None:
        """Close the connections that wait."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    @contextmanager
    def _asked(self, method: str, path: str, body: bytes | None, limit_s: float) -> Iterator[Exchange]:
        """An exchange, redirects behind it. Whatever fails in it is an EndpointError."""
        deadline_s = time.monotonic() + limit_s
        try:
            exchange = self._followed(method, path, body, deadline_s)
            try:
                yield exchange
            finally:
                self._done_with(exchange)
        except EndpointError:
            raise
        except TimeoutError:
            raise EndpointError("timeout", f"no whole answer within {limit_s:g} s (--timeout)") from None
        except (OSError, HTTPException, ValueError) as error:
            raise told(error, self.address.origin) from error

    def _followed(self, method: str, path: str, body: bytes | None, deadline_s: float) -> Exchange:
        for _ in range(MOST_REDIRECTS + 1):
            exchange = self._sent(method, path, body, deadline_s)
            if exchange.response.status not in REDIRECTS:
                return exchange
            exchange.close()
            path = self._redirected(method, path, exchange.response)
        raise EndpointError("redirect", f"{self.address.origin} redirects in a circle")

    def _sent(self, method: str, path: str, body: bytes | None, deadline_s: float) -> Exchange:
        """On a connection that waits, else, or where the server has closed that one, on a new one."""
        path, headers = f"{self.address.path}{path}", self._headers(body)
        with self._lock:
            kept = self._idle.pop() if self._idle else None
        for connection in filter(None, (kept, self._connection())):
            try:
                return ask(connection, method, path, body, headers, deadline_s)
            except BaseException as error:
                connection.close()
                if connection is not kept or not isinstance(error, STALE):
                    raise
        raise AssertionError("the last connection returns or raises")

    def _connection(self) -> HTTPConnection:
        """One that is not open yet."""
        host, port = self.address.host, self.address.port
        if self.address.scheme == "https":
            return HTTPSConnection(host, port, timeout=CONNECT_S, context=ssl.create_default_context())
        return HTTPConnection(host, port, timeout=CONNECT_S)

    def _headers(self, body: bytes | None) -> dict[str, str]:
        host = self.address.origin.partition("://")[2]
        headers = {"Host": host, "User-Agent": f"kvtool/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        return headers

    def _redirected(self, method: str, path: str, response: HTTPResponse) -> str:
        """The path on the same server. Raises EndpointError for another one, and where the body would get lost."""
        here = f"{self.address.origin}{self.address.path}{path}"
        target = urlsplit(urljoin(here, response.headers["Location"] or ""))
        there = Address(target.scheme, target.hostname or "", target.port or PORTS.get(target.scheme, 0)).origin
        if there != self.address.origin:
            raise EndpointError(
                "redirect", f"the server redirects to {there}, where nothing was sent: name it as --url"
            )
        if method != "GET" and response.status not in KEPT_WHOLE:
            raise EndpointError("redirect", f"the server redirects {path} by a {response.status}, which drops the body")
        query = f"?{target.query}" if target.query else ""
        return f"{target.path.removeprefix(self.address.path)}{query}"

    def _done_with(self, exchange: Exchange) -> None:
        """Its connection waits for the next request, where it can."""
        if not exchange.reusable:
            exchange.close()
            return
        with self._lock:
            self._idle.append(exchange.connection)
