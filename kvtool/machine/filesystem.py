"""What a folder lies on: a disk, or memory that only looks like one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
BLOCK_DEVICES = Path("/sys/dev/block")
IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs")
LAYERED = ("overlay", "aufs", "fuse-overlayfs")
FREE_SHARE = 0.1  # of a filesystem that nothing here fills


@dataclass(frozen=True, slots=True)
class Filesystem:
    """`kind` as Linux names it, None where it does not say. `device` is the block device's name, as nvme0n1."""

    kind: str | None
    device: str | None = None

    @property
    def not_a_disk(self) -> str | None:
        """Why no speed measured here is a disk's; None where it may be."""
        if self.kind in IN_MEMORY:
            return f"{self.kind} is memory, not a disk"
        if self.kind in LAYERED:
            return f"{self.kind} lies over other filesystems: what answers is not known"
        return "the filesystem is not known" if self.kind is None else None

    @property
    def remark(self) -> str | None:
        """What to know of a disk's speed."""
        if self.device is not None and self.device.startswith(("vd", "xvd")):
            return f"{self.device} is a virtual disk: its host may cache and limit it"
        return None


def filesystem_of(folder: Path, mounts: Path = MOUNTS, block_devices: Path = BLOCK_DEVICES) -> Filesystem:
    """Where files of the folder lie."""
    device = os.stat(folder).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return Filesystem(None)
    found = (_mounted(line) for line in reversed(lines))  # what was mounted last hides what lies below
    kind = next((kind for found_number, kind in found if found_number == number), None)
    return Filesystem(kind, _block_device(number, block_devices))


def _mounted(line: str) -> tuple[str, str]:
    """`36 35 98:0 / /mnt rw - ext4 /dev/sda1 rw`: its device number and its kind."""
    before, _, after = line.partition(" - ")
    return before.split()[2], after.split()[0]


def _block_device(number: str, block_devices: Path) -> str | None:
    link = block_devices / number
    return link.resolve().name if link.exists() else None


def writable_bytes(folder: Path) -> int:
    """Bytes that may be written there so that a tenth of the filesystem stays free."""
    facts = os.statvfs(folder)
    return max(0, (facts.f_bavail - int(FREE_SHARE * facts.f_blocks)) * facts.f_frsize)
