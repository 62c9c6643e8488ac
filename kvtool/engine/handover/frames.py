"""Frames of a hand-over over TCP: a fixed header, then bytes. No pickle; a token first, and nothing beyond what is due.

magic 4s | version u16 | kind u16 | request u64 | offset u64 | length u64, big-endian; then `length` bytes
"""

from __future__ import annotations

import hmac
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum

from kvtool.system.errors import DeviceError

MAGIC, VERSION = b"KVHO", 1
HEADER = struct.Struct(">4sHHQQQ")
TOKEN_BYTES = 16


class Kind(IntEnum):
    """What a frame carries: the token of the one who connects, a part of a request's pages, or their end."""

    TOKEN = 1
    PART = 2
    END = 3


@dataclass(frozen=True, slots=True)
class Frame:
    """`length` bytes follow, which belong at `offset` of what is staged for the request."""

    kind: Kind
    request: int = 0
    offset: int = 0
    length: int = 0

    def encoded(self) -> bytes:
        return HEADER.pack(MAGIC, VERSION, self.kind, self.request, self.offset, self.length)


def read_frame(connection: socket.socket) -> Frame | None:
    """The next header; None where the other side has closed. Raises DeviceError for one that is no frame."""
    header = bytearray(HEADER.size)
    if not read_into(connection, memoryview(header)):
        return None
    magic, version, kind, request, offset, length = HEADER.unpack(header)
    if magic != MAGIC or version != VERSION or kind not in tuple(Kind):
        raise DeviceError(f"a hand-over began with {bytes(header[:8])!r}, which is no frame of version {VERSION}")
    return Frame(Kind(kind), request, offset, length)


def read_into(connection: socket.socket, target: memoryview) -> bool:
    """Fill `target`; False where the other side closed before. Raises DeviceError where it closed in the middle."""
    at = 0
    while at < len(target):
        count = connection.recv_into(target[at:])
        if count == 0:
            if at == 0:
                return False
            raise DeviceError(f"a hand-over ended after {at} of {len(target)} bytes")
        at += count
    return True


def listen(address: str) -> socket.socket:
    """A socket on a free port of `address` alone. Raises DeviceError where there is no such address here."""
    try:
        return socket.create_server((address, 0))
    except OSError as error:
        raise DeviceError(f"cannot listen on {address}: {error.strerror or error}") from error


def greet(connection: socket.socket, token: bytes) -> None:
    """Say who connects."""
    connection.sendall(Frame(Kind.TOKEN, length=TOKEN_BYTES).encoded() + token)


def is_known(connection: socket.socket, token: bytes) -> bool:
    """Whether the one who connected has the token."""
    frame = read_frame(connection)
    if frame is None or frame.kind is not Kind.TOKEN or frame.length != TOKEN_BYTES:
        return False
    said = bytearray(TOKEN_BYTES)
    return read_into(connection, memoryview(said)) and hmac.compare_digest(bytes(said), token)
