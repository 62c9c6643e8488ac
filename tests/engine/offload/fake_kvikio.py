"""kvikio's Python side (26.10: kvikio/cufile.py, defaults.py, cufile_driver.py); a GPU's bytes go through host memory.

A request is served when its future is asked for. What its C++ throws is a RuntimeError, with the system's words in it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

GPU_PAGE_BYTES = 4096  # at whose multiples GPUDirect Storage reads and writes


class IOFuture:
    def __init__(self, serve: Callable[[], int]) -> None:
        self._serve = serve

    def get(self) -> int:
        try:
            return self._serve()
        except OSError as error:
            raise RuntimeError(f"Linux system/C library function call error: {error.strerror}") from error

    def done(self) -> bool:
        return False


def on_host(buf: Any) -> Any:
    return buf.cpu().numpy() if hasattr(buf, "__cuda_array_interface__") else buf


class Kvikio(ModuleType):
    """`moved` bytes so far, `threads` it was told to have, a disk with `room` for so many bytes more, and whether the
    machine has GPUDirect Storage (None: not even cuFile)."""

    def __init__(self) -> None:
        super().__init__("kvikio")
        self.moved: dict[str, int] = {"r": 0, "r+": 0}
        self.threads = 1
        self.room = 1 << 62
        self.gds: bool | None = True
        kvikio = self

        class CuFile:
            def __init__(self, file: Path | str, flags: str = "r") -> None:
                self._flags = flags
                self._fd = os.open(file, {"r": os.O_RDONLY, "r+": os.O_RDWR}[flags])

            def close(self) -> None:
                os.close(self._fd)

            def __enter__(self) -> CuFile:
                return self

            def __exit__(self, exc_type: object, exc_val: object, exc_tb: object) -> None:
                self.close()

            def pread(
                self, buf: Any, size: int | None = None, file_offset: int = 0, task_size: int | None = None
            ) -> IOFuture:
                def serve() -> int:
                    host = on_host(buf)
                    count = os.preadv(self._fd, [memoryview(host).cast("B")[:size]], file_offset)
                    if host is not buf:
                        buf.copy_(torch.from_numpy(host))
                    return self._moved(count, size)

                return IOFuture(serve)

            def pwrite(
                self, buf: Any, size: int | None = None, file_offset: int = 0, task_size: int | None = None
            ) -> IOFuture:
                def serve() -> int:
                    view = memoryview(on_host(buf)).cast("B")[:size]
                    kvikio.room -= len(view)
                    if kvikio.room < 0:
                        raise OSError(28, os.strerror(28))
                    return self._moved(os.pwrite(self._fd, view, file_offset), size)

                assert file_offset % GPU_PAGE_BYTES == 0
                return IOFuture(serve)

            def _moved(self, count: int, asked: int | None) -> int:
                if asked is not None and count < asked:
                    raise RuntimeError("EOF")
                kvikio.moved[self._flags] += count
                return count

        self.CuFile = CuFile
        self.defaults = ModuleType("kvikio.defaults")
        self.cufile_driver = ModuleType("kvikio.cufile_driver")
        self.defaults.set = self._set  # type: ignore[attr-defined]
        self.cufile_driver.get = self._get  # type: ignore[attr-defined]

    def _set(self, *config: Any) -> None:
        (name, value) = config
        assert name == "num_threads"
        self.threads = value

    def _get(self, config_name: str) -> bool:
        assert config_name == "is_gds_available"
        if self.gds is None:
            raise RuntimeError("KvikIO not compiled with cuFile.h")
        return self.gds


def install(monkeypatch: pytest.MonkeyPatch) -> Kvikio:
    """It is what `import kvikio` finds."""
    module = Kvikio()
    for name, part in (("", module), (".defaults", module.defaults), (".cufile_driver", module.cufile_driver)):
        monkeypatch.setitem(sys.modules, f"kvikio{name}", part)
    return module
