"""What a folder lies on, by the mounts of made-up machines, and how much of it may be filled."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvtool.machine.filesystem import Filesystem, filesystem_of, writable_bytes


def on(tmp_path: Path, *lines: str, device: str | None = None) -> Filesystem:
    """Of `tmp_path` under these mounts, where DEV stands for its own device."""
    number = os.stat(tmp_path).st_dev
    name = f"{os.major(number)}:{os.minor(number)}"
    mounts, blocks = tmp_path / "mountinfo", tmp_path / "blocks"
    mounts.write_text("".join(f"{line}\n".replace("DEV", name) for line in lines))
    blocks.mkdir()
    if device is not None:
        (blocks / name).symlink_to(tmp_path / device)
        (tmp_path / device).mkdir()
    return filesystem_of(tmp_path, mounts, blocks)


def test_a_disk_is_one(tmp_path: Path) -> None:
    found = on(
        tmp_path, "1 0 0:9 / /proc rw - proc proc rw", "2 0 DEV / / rw shared:1 - ext4 /dev/root rw", device="nvme0n1"
    )
    assert found == Filesystem("ext4", "nvme0n1")
    assert (found.not_a_disk, found.remark) == (None, None)


def test_a_virtual_disk_is_one_with_a_remark(tmp_path: Path) -> None:
    found = on(tmp_path, "2 0 DEV / / rw - xfs /dev/vda rw", device="vda")
    assert found.not_a_disk is None
    assert found.remark == "vda is a virtual disk: its host may cache and limit it"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("2 0 DEV / /tmp rw - tmpfs tmpfs rw,size=1g", "tmpfs is memory, not a disk"),
        ("2 0 DEV / / rw - overlay overlay rw,lowerdir=/a", "overlay lies over other filesystems"),
        ("2 0 0:99 / /other rw - ext4 /dev/sda1 rw", "the filesystem is not known"),
    ],
)
def test_what_is_no_disk_says_why(tmp_path: Path, line: str, why: str) -> None:
    assert why in (on(tmp_path, line).not_a_disk or "")


def test_the_last_mount_of_a_device_counts(tmp_path: Path) -> None:
    lines = ("1 0 DEV / /a rw - ext4 /dev/sda1 rw", "2 0 DEV /x /b rw - tmpfs none rw")
    assert on(tmp_path, *lines).kind == "tmpfs"


def test_a_tenth_stays_free(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = SimpleNamespace(f_bavail=300, f_blocks=1000, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda folder: facts)
    assert writable_bytes(Path()) == 200 * 4096
    facts.f_bavail = 90
    assert writable_bytes(Path()) == 0
