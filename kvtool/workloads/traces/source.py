"""The bytes of a trace: a file, plain or gzip, or a folder of them, with the SHA-256 of what was read.

The hash is of the uncompressed bytes, so that a trace and its .gz have the same one.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from kvtool.system.errors import KvtoolError

GZIP_MAGIC = b"\x1f\x8b"
HEAD_BYTES = 1 << 16
SUFFIXES = (".json", ".jsonl", ".csv", ".msgpack", ".gz")


class TraceSource:
    """One trace on disk. `sha256` is of all bytes read since it was made, so read it whole, and once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.files = _files(path)
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def head(self) -> bytes:
        """The first bytes of the first file, uncompressed. Raises KvtoolError when it cannot be read."""
        with _opened(self.files[0]) as file:
            return file.read(HEAD_BYTES)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines that are not blank, numbered from 1 through all files. Raises KvtoolError."""
        number = 0
        for path in self.files:
            with _opened(path) as file:
                for line in file:
                    number += 1
                    self._hash.update(line)
                    if not line.isspace():
                        yield number, line

    def contents(self) -> Iterator[tuple[str, bytes]]:
        """Each file's name and all its bytes. Raises KvtoolError."""
        for path in self.files:
            with _opened(path) as file:
                data = file.read()
            self._hash.update(data)
            yield path.name, data


def _files(path: Path) -> list[Path]:
    """The file, or the trace files of a folder by name. Raises KvtoolError when there are none."""
    if not path.is_dir():
        return [path]
    files = sorted(member for member in path.iterdir() if member.is_file() and member.name.endswith(SUFFIXES))
    if not files:
        raise KvtoolError(f"{path} has no trace in it: a trace ends in {', '.join(SUFFIXES)}")
    return files


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file, uncompressed while it is read. Raises KvtoolError for what cannot be opened, read or unpacked."""
    try:
        with path.open("rb") as file:
            if file.peek(2)[:2] == GZIP_MAGIC:
                with gzip.open(file) as unpacked:
                    yield cast(IO[bytes], unpacked)
            else:
                yield file
    except (OSError, EOFError, zlib.error, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise KvtoolError(f"cannot read {str(path)[:200]!r}: {reason}") from error
