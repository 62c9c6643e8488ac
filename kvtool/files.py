"""Files of a user: read with one line for what is wrong, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvtool.errors import KvtoolError


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """What the system says of a file that cannot be read, as a KvtoolError that names the file."""
    try:
        yield
    except OSError as error:
        raise KvtoolError(f"cannot read {path}: {error.strerror or error}") from error


def read_bytes(path: Path, *, at_most: int | None = None, what: str = "file") -> bytes:
    """The whole file. Raises KvtoolError when it cannot be read, or has more than `at_most` bytes and is no `what`."""
    with reading(path):
        if at_most is not None and path.stat().st_size > at_most:
            raise KvtoolError(f"{path} is larger than {at_most} bytes: not a {what}")
        return path.read_bytes()


def write_atomic(path: Path, data: bytes) -> None:
    """Write through a temporary file and a rename, so that no half-written file is ever left. Raises KvtoolError."""
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise KvtoolError(f"cannot write {path}: {error.strerror}") from error
