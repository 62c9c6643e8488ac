"""Where a server is: the URL that a user typed, and the key that opens it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from kvtool.system.errors import KvtoolError

FORM = "write http://127.0.0.1:8000"
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """`path` stands before every route of the server, "" for most."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @property
    def origin(self) -> str:
        """What a redirect must keep for the key to go with it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def parse_address(url: str) -> Address:
    """Of `http://127.0.0.1:8000`, with or without the /v1 behind it. Raises KvtoolError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise KvtoolError(f"url {url!r} is none ({error}): {FORM}") from None
    if parts.scheme not in PORTS or not parts.hostname:
        raise KvtoolError(f"url {url!r} names no server: {FORM}")
    if parts.username is not None or parts.password is not None:
        raise KvtoolError(f"the url of {parts.hostname} holds a password: leave it out, and name a --api-key-env")
    if parts.query or parts.fragment:
        raise KvtoolError(f"url {url!r} has a query: {FORM}")
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Address(parts.scheme, parts.hostname, PORTS[parts.scheme] if port is None else port, path)


def read_key(name: str | None) -> str | None:
    """The key in that environment variable; None where none is named. Raises KvtoolError, never with the key in it."""
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise KvtoolError(f"--api-key-env {name}: the environment has no such variable, or it is empty")
    if not (key.isascii() and key.isprintable()):
        raise KvtoolError(f"--api-key-env {name}: its value holds characters that no HTTP header may")
    return key
