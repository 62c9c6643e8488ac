"""Both ends of a hand-over's connection: who sends in a thread of its own, and who receives in one for each sender."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from dataclasses import dataclass

from torch import Tensor

from kvtool.engine.handover.frames import Frame, Kind, greet, is_known, listen, read_frame, read_into
from kvtool.system.errors import DeviceError

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes `memory[offset : offset + length]` of a request to send; without memory: the request is whole."""

    address: Address
    request: int
    memory: Tensor | None = None
    offset: int = 0
    length: int = 0


class Sender:
    """Sends what it is given, in order, while the engine goes on."""

    def __init__(self, token: bytes) -> None:
        self._token = token
        self._queue: queue.SimpleQueue[Part | None] = queue.SimpleQueue()
        self._connections: dict[Address, socket.socket] = {}
        self.failed: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def send(self, part: Part) -> None:
        """Raises DeviceError where an earlier part could not be sent."""
        if self.failed is not None:
            raise DeviceError(f"a hand-over broke: {self.failed}")
        self._queue.put(part)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(5)
        for connection in self._connections.values():
            connection.close()

    def _run(self) -> None:
        try:
            while (part := self._queue.get()) is not None:
                self._send(part)
        except OSError as error:
            self.failed = error

    def _send(self, part: Part) -> None:
        connection = self._connections.get(part.address)
        if connection is None:
            connection = socket.create_connection(part.address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            greet(connection, self._token)
            self._connections[part.address] = connection
        if part.memory is None:
            connection.sendall(Frame(Kind.END, part.request).encoded())
            return
        connection.sendall(Frame(Kind.PART, part.request, part.offset, part.length).encoded())
        connection.sendall(part.memory.numpy().data[part.offset : part.offset + part.length])


class Receiver:
    """Takes the parts of requests that are `expected`, and tells through a pipe which are whole, and since when."""

    def __init__(self, address: str, token: bytes) -> None:
        self._token = token
        self._server = listen(address)
        self.address: Address = self._server.getsockname()[:2]
        self._expected: dict[int, Tensor] = {}
        self.whole: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()
        self.wake, self._ring = os.pipe()
        threading.Thread(target=self._accept, daemon=True).start()

    def expect(self, request: int, memory: Tensor) -> None:
        """Parts of the request go into `memory`, uint8, and nowhere else."""
        self._expected[request] = memory

    def arrived(self) -> list[tuple[int, float]]:
        """Requests that became whole since, and when."""
        found = []
        while not self.whole.empty():
            found.append(self.whole.get())
            os.read(self.wake, 1)
        return found

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        """Until the sender closes, or says something that it may not."""
        with connection:
            try:
                if not is_known(connection, self._token):
                    return
                while (frame := read_frame(connection)) is not None:
                    if not self._take(connection, frame):
                        return
            except (DeviceError, OSError):
                return

    def _take(self, connection: socket.socket, frame: Frame) -> bool:
        memory = self._expected.get(frame.request)
        if memory is None or frame.offset + frame.length > len(memory):
            return False
        if frame.kind is Kind.PART:
            return read_into(connection, memory.numpy().data[frame.offset : frame.offset + frame.length])
        if frame.kind is not Kind.END:
            return False
        del self._expected[frame.request]
        self.whole.put((frame.request, time.perf_counter()))
        os.write(self._ring, b".")
        return True
