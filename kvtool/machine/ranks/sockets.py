"""Bytes that this process has sent over TCP, as the kernel counts them: what a formula of traffic is held against."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

_BYTES_SENT_AT = 200  # of struct tcp_info, include/uapi/linux/tcp.h since Linux 4.19: tcpi_bytes_sent, _retrans


def sent_bytes() -> int | None:
    """By all TCP sockets that are open, each byte once; None where the kernel does not tell."""
    counts = [_sent(one) for one in _tcp_sockets()]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) and known else None


def _tcp_sockets() -> Iterator[socket.socket]:
    """A copy of each socket of this process, closed once it was looked at."""
    try:
        descriptors = os.listdir("/proc/self/fd")
    except OSError:
        return
    for descriptor in descriptors:
        try:
            if not os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:"):
                continue
            copy = socket.socket(fileno=os.dup(int(descriptor)))
        except OSError:  # closed meanwhile
            continue
        with copy:
            if copy.family in (socket.AF_INET, socket.AF_INET6) and copy.type == socket.SOCK_STREAM:
                yield copy


def _sent(connection: socket.socket) -> int | None:
    try:
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_SENT_AT + 16)
    except (OSError, AttributeError):
        return None
    if len(told) < _BYTES_SENT_AT + 16:
        return None
    sent, again = struct.unpack_from("=QQ", told, _BYTES_SENT_AT)
    return int(sent - again)
