"""The folder of page files, `FOLDER/kvtool-cache/`: kvtool's own, for its user alone, since K and V reveal prompts.

Every name is looked up in the open folder, no symbolic link is followed, and only files of kvtool's own names go.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvtool.machine.direct_io import is_direct, open_direct
from kvtool.system.errors import KvtoolError

NAME = "kvtool-cache"
_PAGE = re.compile(r"[0-9a-f]{32}\.page")
_TEMPORARY = re.compile(r"[0-9a-f]{32}\.page\.[0-9a-f]{8}\.tmp")


class PageFolder:
    """Opened by one process at a time. Its methods raise OSError; all but `close` may run in any thread."""

    def __init__(self, parent: Path) -> None:
        """Raises KvtoolError for a folder that cannot be made, is not this user's alone, or is in use."""
        self.path = parent / NAME
        try:
            parent.mkdir(parents=True, exist_ok=True)
            self.fd = _opened(self.path)
        except OSError as error:
            raise KvtoolError(f"--tiers disk={parent}: cannot use {self.path} ({error.strerror})") from error
        try:
            _require_own(self.fd, self.path)
        except BaseException:
            os.close(self.fd)
            raise
        self.direct: bool | None = None  # known from the first file on

    def scan(self) -> list[tuple[bytes, int]]:
        """The key and size of every page file, the least recently used first. Removes what a killed run left behind."""
        pages: list[tuple[int, bytes, int]] = []
        with os.scandir(self.fd) as entries:
            for entry in entries:
                if not entry.is_file(follow_symlinks=False):
                    continue
                if _TEMPORARY.fullmatch(entry.name):
                    os.unlink(entry.name, dir_fd=self.fd)
                elif _PAGE.fullmatch(entry.name):
                    facts = entry.stat(follow_symlinks=False)
                    pages.append((facts.st_mtime_ns, bytes.fromhex(entry.name[:32]), facts.st_size))
        return [(key, size) for _, key, size in sorted(pages)]

    def write(self, key: bytes, fill: Callable[[int], object]) -> None:
        """`fill` a file beside its place, then rename it: who reads never sees half of it, but after a power cut
        perhaps, since nothing waits for the disk's own cache; checksums find that."""
        temporary = f"{_name(key)}.{os.urandom(4).hex()}.tmp"
        try:
            with self._open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as fd:
                fill(fd)
            os.rename(temporary, _name(key), src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except OSError:
            self._unlink(temporary)
            raise

    def read(self, key: bytes, take: Callable[[int], object]) -> None:
        """`take` what the page's file holds."""
        with self._open(_name(key), os.O_RDONLY | os.O_NONBLOCK) as fd:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(f"{_name(key)} is not a file")
            os.utime(fd)  # the next run's order of use
            take(fd)

    def remove(self, key: bytes) -> None:
        """The page's file, if it is there and a file."""
        self._unlink(_name(key))

    def free_bytes(self) -> int:
        """What the filesystem has left for this user."""
        facts = os.fstatvfs(self.fd)
        return facts.f_bavail * facts.f_frsize

    def close(self) -> None:
        """Another process may open it now."""
        os.close(self.fd)

    @contextmanager
    def _open(self, name: str, flags: int) -> Iterator[int]:
        fd = open_direct(name, flags, dir_fd=self.fd)
        try:
            self.direct = is_direct(fd)
            yield fd
        finally:
            os.close(fd)

    def _unlink(self, name: str) -> None:
        try:
            if stat.S_ISREG(os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            return


def _name(key: bytes) -> str:
    return f"{key.hex()}.page"


def _opened(path: Path) -> int:
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _require_own(fd: int, path: Path) -> None:
    facts = os.fstat(fd)
    if facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & 0o077:
        raise KvtoolError(f"{path} can be read by others, and K and V reveal prompts: chmod 700 it, or remove it")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise KvtoolError(f"{path} is in use by another kvtool: give each run a folder of its own") from None
