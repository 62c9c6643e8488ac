"""Reading and writing files past the page cache, where the filesystem can: O_DIRECT with preadv and pwritev.

Both release the interpreter's lock, so that threads keep a disk busy: one request in flight a thread.
"""

from __future__ import annotations

import errno
import mmap
import os

from kvtool.units import round_up

ALIGNMENT = 4096  # of buffers, offsets and lengths: enough for every disk with sectors of 512 or 4096 bytes
_DIRECT = getattr(os, "O_DIRECT", 0)


class AlignedBuffer:
    """Memory that O_DIRECT takes: its start is that of a page of memory, its length a whole number of ALIGNMENT."""

    def __init__(self, num_bytes: int) -> None:
        """Raises MemoryError or OSError where there is no memory."""
        self._pages = mmap.mmap(-1, round_up(max(1, num_bytes), ALIGNMENT))
        self.view = memoryview(self._pages)

    def __len__(self) -> int:
        return len(self.view)


def open_direct(path: str | os.PathLike[str], flags: int, *, dir_fd: int | None = None, mode: int = 0o600) -> int:
    """The file past the page cache, or through it where the filesystem refuses. Never through a symbolic link."""
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    if _DIRECT:
        try:
            return os.open(path, flags | _DIRECT, mode, dir_fd=dir_fd)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    # A filesystem may make the file before it refuses O_DIRECT; only this process knows its name.
    return os.open(path, flags & ~os.O_EXCL, mode, dir_fd=dir_fd)


def is_direct(fd: int) -> bool:
    """Whether the open file passes the page cache by."""
    import fcntl

    return bool(_DIRECT and fcntl.fcntl(fd, fcntl.F_GETFL) & _DIRECT)


def read_into(fd: int, view: memoryview, offset: int = 0) -> int:
    """Fill `view` from the file; fewer bytes where it ends before. Raises OSError."""
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        done += count
        if count == 0 or count % ALIGNMENT:  # the end of the file: O_DIRECT cannot go on from an odd place
            break
    return done


def write_from(fd: int, view: memoryview, offset: int = 0) -> None:
    """All of `view`. Raises OSError, ENOSPC too where the disk takes only a part."""
    done = 0
    while done < len(view):
        count = os.pwritev(fd, [view[done:]], offset + done)
        if count == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done += count
