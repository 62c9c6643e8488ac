"""One page as a file: a header that says whose it is and what it must hold, then the page.

header (4096 bytes)   magic, kind of sums, bytes a stripe, fingerprint, key, bytes of the page
                      a sum of each stripe
                      zeros, and in the last 16 bytes a BLAKE2b of all before
page                  one contiguous block of all layers, in host memory filled up with zeros to a multiple of 4096

CRC-32 because a core checks 4 GB/s with it and 0.7 GB/s with BLAKE2b, less than a disk reads. It finds every flipped
bit; a stripe of other bytes passes once in 2**32, and a torn page has many of them. BLAKE2b guards the short header.
A page that never comes into host memory is summed up by products instead, which a GPU can do.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b

from kvtool.machine.direct_io import ALIGNMENT
from kvtool.units import KIB, ceil_div, round_up

MAGIC = b"KVTPAGE\0"
HEADER_BYTES = ALIGNMENT
LEAST_STRIPE_BYTES = 64 * KIB
_FIELDS = struct.Struct("<8sII16s16sQ")
_SEAL_BYTES = 16
_MOST_STRIPES = (HEADER_BYTES - _FIELDS.size - _SEAL_BYTES) // 4


class Sums(IntEnum):
    """What the sums of stripes are: 32 bits each."""

    CRC_32 = 1
    PRODUCTS = 2


class BadPageError(Exception):
    """The file is not the whole page that it should be; `kind` says in a word what is wrong."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


def file_bytes(page_bytes: int) -> int:
    """Size of the file of a page."""
    return HEADER_BYTES + round_up(page_bytes, ALIGNMENT)


@dataclass(frozen=True, slots=True)
class Header:
    """What the file of a page says of it."""

    fingerprint: bytes
    key: bytes
    page_bytes: int
    kind: Sums = Sums.CRC_32

    @property
    def stripe_bytes(self) -> int:
        """As small as the header has room for."""
        stripe = LEAST_STRIPE_BYTES
        while ceil_div(self.page_bytes, stripe) > _MOST_STRIPES:
            stripe *= 2
        return stripe

    def encode(self, sums: Sequence[int]) -> bytes:
        """HEADER_BYTES of them."""
        fields = _FIELDS.pack(MAGIC, self.kind, self.stripe_bytes, self.fingerprint, self.key, self.page_bytes)
        header = (fields + struct.pack(f"<{len(sums)}I", *sums)).ljust(HEADER_BYTES - _SEAL_BYTES, b"\0")
        return header + _seal(header)

    def decode(self, image: memoryview) -> list[int]:
        """The sums of the header at the start of `image`. Raises BadPageError for any other page's."""
        if len(image) < HEADER_BYTES:
            raise BadPageError("truncated")
        header, seal = bytes(image[: HEADER_BYTES - _SEAL_BYTES]), image[HEADER_BYTES - _SEAL_BYTES : HEADER_BYTES]
        magic, *said = _FIELDS.unpack_from(header)
        if magic != MAGIC or _seal(header) != seal:
            raise BadPageError("corrupt")
        if said != [self.kind, self.stripe_bytes, self.fingerprint, self.key, self.page_bytes]:
            raise BadPageError("foreign")
        return list(struct.unpack_from(f"<{ceil_div(self.page_bytes, self.stripe_bytes)}I", header, _FIELDS.size))


def encode_page(image: memoryview, key: bytes, fingerprint: bytes, page: memoryview) -> None:
    """Fill `image`, of `file_bytes` bytes, with the file of `page`."""
    header = Header(fingerprint, key, len(page))
    image[:HEADER_BYTES] = header.encode(_crc_sums(page, header.stripe_bytes))
    end = HEADER_BYTES + len(page)
    image[HEADER_BYTES:end] = page
    image[end:] = bytes(len(image) - end)


def decode_page(image: memoryview, key: bytes, fingerprint: bytes, page_bytes: int) -> memoryview:
    """The page in `image`, the file as it was read. Raises BadPageError for anything but the whole page of `key`."""
    header = Header(fingerprint, key, page_bytes)
    sums = header.decode(image)
    if len(image) < file_bytes(page_bytes):
        raise BadPageError("truncated")
    page = image[HEADER_BYTES : HEADER_BYTES + page_bytes]
    if sums != _crc_sums(page, header.stripe_bytes):
        raise BadPageError("corrupt")
    return page


def _crc_sums(page: memoryview, stripe: int) -> list[int]:
    return [zlib.crc32(page[start : start + stripe]) for start in range(0, len(page), stripe)]


def _seal(header: bytes) -> bytes:
    return blake2b(header, digest_size=_SEAL_BYTES).digest()
