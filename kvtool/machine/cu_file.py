"""Files read and written by kvikio, over NVIDIA's cuFile: between a file and a buffer wherever that lies, a GPU's own
memory past the host's where there is GPUDirect Storage. The methods do what the functions of `direct_io` do.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kvtool.system.errors import KvtoolError


class CuFiles:
    """Buffers are contiguous, and have `__cuda_array_interface__` or the buffer protocol, and `nbytes`."""

    def __init__(self, num_threads: int) -> None:
        """Requests of so many threads go side by side. Raises KvtoolError where kvikio cannot be had."""
        try:
            import kvikio
            import kvikio.cufile_driver
            import kvikio.defaults
        except (ImportError, OSError, RuntimeError) as error:  # its libraries may miss those of CUDA
            said = str(error).partition("\n")[0]
            raise KvtoolError(f"kvikio cannot be used here ({said}): pip install 'kvtool[kvikio]'") from error
        kvikio.defaults.set("num_threads", num_threads)  # one of its own for all, unless told
        self._kvikio: Any = kvikio

    @property
    def reaches_devices(self) -> bool:
        """Whether GPUDirect Storage is there: kvikio goes through host memory without a word where it is not."""
        try:
            return bool(self._kvikio.cufile_driver.get("is_gds_available"))
        except RuntimeError:  # no cuFile at all
            return False

    def read_into(self, fd: int, buffer: Any, offset: int = 0) -> int:
        """Fill `buffer` from the file; fewer bytes where it ends before. Raises OSError."""
        count = min(buffer.nbytes, max(0, os.fstat(fd).st_size - offset))
        with self._opened(fd, "r") as file:
            return int(file.pread(buffer, count, offset).get()) if count else 0

    def write_from(self, fd: int, buffer: Any, offset: int = 0) -> None:
        """All of `buffer`. Raises OSError, ENOSPC too where the disk takes only a part."""
        with self._opened(fd, "r+") as file:
            if file.pwrite(buffer, buffer.nbytes, offset).get() < buffer.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextmanager
    def _opened(self, fd: int, flags: str) -> Iterator[Any]:
        """The file behind `fd`, whatever its name is by now: kvikio opens paths alone."""
        try:
            with self._kvikio.CuFile(f"/proc/self/fd/{fd}", flags) as file:
                yield file
        except RuntimeError as error:
            raise OSError(_number(str(error)), str(error)) from error


def _number(told: str) -> int:
    """The error number in the words of a C++ exception."""
    return next((number for number in (errno.ENOSPC, errno.EDQUOT) if os.strerror(number) in told), errno.EIO)
