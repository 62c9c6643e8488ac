"""Pages of known bytes through a disk tier."""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch
from torch import Tensor

from kvtool.engine.offload.disk import DiskTier
from kvtool.engine.offload.folder import PageFolder
from kvtool.engine.offload.notices import Notices
from kvtool.engine.offload.page_file import file_bytes
from kvtool.engine.offload.page_io import DevicePages, HostPages
from kvtool.machine.cu_file import CuFiles

PAGE_BYTES = 150_001  # three stripes, the last of them short
RUN, OTHER_RUN = b"r" * 16, b"o" * 16
ROOMY = 1000


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def page(number: int) -> bytes:
    return Random(number).randbytes(PAGE_BYTES)


def in_memory(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def open_tier(
    parent: Path, notices: Notices, *, pages: int = ROOMY, run: bytes = RUN, files: CuFiles | None = None
) -> DiskTier:
    """By kvikio where that is given."""
    page_io = HostPages(run, PAGE_BYTES) if files is None else DevicePages(run, PAGE_BYTES, torch.device("cpu"), files)
    return DiskTier(PageFolder(parent), page_io, capacity_bytes=pages * file_bytes(PAGE_BYTES), notices=notices)


def save(tier: DiskTier, numbers: range) -> int:
    """Write these pages one after the other, each landed before the next; how many the tier took."""
    taken = 0
    for number in numbers:
        taken += tier.write(key(number), in_memory(page(number)), done=lambda: None, ready=lambda: None)
        tier.wait()
        tier.check()
    return taken


def read(tier: DiskTier, number: int) -> bytes | None:
    """The page, None where it is not there whole."""
    if key(number) not in tier:
        return None
    into = torch.zeros(PAGE_BYTES, dtype=torch.uint8)
    whole = tier.finish_read(key(number), tier.read(key(number), into).result())
    tier.check()
    return into.numpy().tobytes() if whole else None


def file_of(parent: Path, number: int) -> Path:
    return parent / "kvtool-cache" / f"{key(number).hex()}.page"
