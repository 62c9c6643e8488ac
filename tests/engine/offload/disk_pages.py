"""Pages of known bytes through a disk tier."""

from __future__ import annotations

from pathlib import Path
from random import Random

from kvtool.engine.offload.disk import DiskTier
from kvtool.engine.offload.folder import PageFolder
from kvtool.engine.offload.notices import Notices
from kvtool.engine.offload.page_file import file_bytes

PAGE_BYTES = 150_001  # three stripes, the last of them short
RUN, OTHER_RUN = b"r" * 16, b"o" * 16
ROOMY = 1000


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def page(number: int) -> bytes:
    return Random(number).randbytes(PAGE_BYTES)


def open_tier(parent: Path, notices: Notices, *, pages: int = ROOMY, run: bytes = RUN) -> DiskTier:
    return DiskTier(
        PageFolder(parent),
        capacity_bytes=pages * file_bytes(PAGE_BYTES),
        fingerprint=run,
        page_bytes=PAGE_BYTES,
        notices=notices,
    )


def save(tier: DiskTier, numbers: range) -> int:
    """Write these pages one after the other, each landed before the next; how many the tier took."""
    taken = 0
    for number in numbers:
        taken += tier.write(key(number), memoryview(page(number)), done=lambda: None, ready=lambda: None)
        tier.wait()
        tier.check()
    return taken


def read(tier: DiskTier, number: int) -> bytes | None:
    """The page, None where it is not there whole."""
    if key(number) not in tier:
        return None
    into = memoryview(bytearray(PAGE_BYTES))
    whole = tier.finish_read(key(number), tier.read(key(number), into).result())
    tier.check()
    return bytes(into) if whole else None


def file_of(parent: Path, number: int) -> Path:
    return parent / "kvtool-cache" / f"{key(number).hex()}.page"
