"""How a page gets into its file and out of it: through host memory, or by kvikio from wherever it lies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from queue import SimpleQueue
from random import Random
from typing import Protocol

import torch
from torch import Tensor

from kvtool.cache.tiers.shelf import Key
from kvtool.engine.offload.page_file import (
    HEADER_BYTES,
    BadPageError,
    Header,
    Sums,
    decode_page,
    encode_page,
    file_bytes,
)
from kvtool.machine.cu_file import CuFiles
from kvtool.machine.direct_io import AlignedBuffer, read_into, write_from

WORKERS = 8  # requests in flight: a disk needs several to be at its speed
_WORD_BYTES = 4
_LOW_BITS = 32


class PageIO(Protocol):
    """Pages of one size and one run, uint8 [page_bytes] each. The file is open; its methods run in any thread."""

    page_bytes: int

    def write(self, fd: int, key: Key, page: Tensor) -> None:
        """Raises OSError."""

    def read(self, fd: int, key: Key, into: Tensor) -> None:
        """Raises OSError, and BadPageError for anything but the whole page of `key`."""


class _Buffers:
    """Aligned memory that one thread has at a time."""

    def __init__(self, num_bytes: int) -> None:
        self._free: SimpleQueue[AlignedBuffer] = SimpleQueue()
        for _ in range(WORKERS):
            self._free.put(AlignedBuffer(num_bytes))

    @contextmanager
    def one(self) -> Iterator[memoryview]:
        buffer = self._free.get()
        try:
            yield buffer.view
        finally:
            self._free.put(buffer)


class HostPages:
    """Of host memory, by preadv and pwritev: the image of a file is made beside the page, and goes at once."""

    def __init__(self, fingerprint: bytes, page_bytes: int) -> None:
        self.page_bytes = page_bytes
        self._fingerprint = fingerprint
        self._images = _Buffers(file_bytes(page_bytes))

    def write(self, fd: int, key: Key, page: Tensor) -> None:
        with self._images.one() as image:
            encode_page(image, key, self._fingerprint, page.numpy().data)
            write_from(fd, image)

    def read(self, fd: int, key: Key, into: Tensor) -> None:
        with self._images.one() as image:
            count = read_into(fd, image)
            into.numpy().data[:] = decode_page(image[:count], key, self._fingerprint, self.page_bytes)


class DevicePages:
    """Of a device's memory, by kvikio: the page goes straight between there and its file, and is summed up where it
    lies. Only the header passes through host memory."""

    def __init__(self, fingerprint: bytes, page_bytes: int, device: torch.device, files: CuFiles) -> None:
        self.page_bytes = page_bytes
        self._fingerprint = fingerprint
        self._files = files
        self._headers = _Buffers(HEADER_BYTES)
        self._sums = StripeSums(self._header(b"").stripe_bytes, device)

    def _header(self, key: Key) -> Header:
        return Header(self._fingerprint, key, self.page_bytes, Sums.PRODUCTS)

    def write(self, fd: int, key: Key, page: Tensor) -> None:
        with self._headers.one() as image:
            image[:] = self._header(key).encode(self._sums.of(page))
            write_from(fd, image)
        self._files.write_from(fd, _buffer(page), HEADER_BYTES)

    def read(self, fd: int, key: Key, into: Tensor) -> None:
        with self._headers.one() as image:
            sums = self._header(key).decode(image[: read_into(fd, image)])
        if self._files.read_into(fd, _buffer(into), HEADER_BYTES) < self.page_bytes:
            raise BadPageError("truncated")
        if self._sums.of(into) != sums:
            raise BadPageError("corrupt")


def _buffer(page: Tensor) -> object:
    """As kvikio takes it: torch's tensors in host memory have no buffer protocol."""
    return page if page.is_cuda else page.numpy()


class StripeSums:
    """Of each stripe of a page, where that lies: its 32-bit words, each times a number of its place, added up modulo
    2**64, of which the upper half. Multilinear hashing (Lemire and Kaser, arXiv 1202.4961): stripes that differ have
    one sum with a chance of 2**-32, whatever they are, as the numbers are drawn without a look at them.
    """

    def __init__(self, stripe_bytes: int, device: torch.device) -> None:
        numbers = bytearray(Random("kvtool page").randbytes(8 * stripe_bytes // _WORD_BYTES))
        self._factors = torch.frombuffer(numbers, dtype=torch.int64).to(device)
        self._stripe_bytes = stripe_bytes
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @torch.inference_mode()
    def of(self, page: Tensor) -> list[int]:
        """The last stripe counts as if zeros followed it. On a GPU what fills the page must be over."""
        with self._beside_others():
            stripes = torch.nn.functional.pad(page, (0, -len(page) % self._stripe_bytes))
            words = stripes.view(torch.int32).view(-1, len(self._factors))
            sums = (words * self._factors).sum(dim=1)
            return [one % (1 << 64) >> _LOW_BITS for one in sums.tolist()]

    def _beside_others(self) -> AbstractContextManager[object]:
        """On a stream of its own, so that no step of the engine is waited for."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
