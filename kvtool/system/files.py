"""Files of a user: read with one line for what is wrong, refused where nested too deep, written whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kvtool.system.errors import KvtoolError
from kvtool.system.interrupts import interruptible

DEEPEST = (
    100  # levels of lists and objects; a config or a document has some ten, and a reader calls itself once a level
)


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """What the system says of a file that cannot be read, as a KvtoolError that names the file."""
    if "\0" in str(path):
        raise KvtoolError(f"cannot read {str(path)!r}: no file's name has a null character")
    try:
        os.fsencode(path)
        yield
    except UnicodeEncodeError as error:  # half of a surrogate pair, as JSON can hold it
        raise KvtoolError(f"cannot read {str(path)!r}: its name is not text") from error
    except OSError as error:
        raise KvtoolError(f"cannot read {path}: {error.strerror or error}") from error


def read_bytes(path: Path, *, at_most: int | None = None, what: str = "file") -> bytes:
    """The whole file. Raises KvtoolError when it cannot be read, or has more than `at_most` bytes and is no `what`."""
    with reading(path):
        if at_most is not None and path.stat().st_size > at_most:
            raise KvtoolError(f"{path} is larger than {at_most} bytes: not a {what}")
        return path.read_bytes()


def write_atomic(path: Path, data: bytes) -> None:
    """Write one file whole, as `write_all` does."""
    write_all({path: data})


def write_all(files: Mapping[Path, bytes]) -> None:
    """Write every file beside its place, then rename them all, so that a full disk leaves none of them changed.

    Only regular files are replaced. Raises KvtoolError that names the file.
    """
    written: dict[Path, Path] = {}
    with interruptible():
        try:
            for path, data in files.items():
                with _writing(path):
                    _refuse_special(path)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    written[path] = path.with_name(f".{path.name[:200]}.{os.urandom(4).hex()}.tmp")
                    _write_new(written[path], data)
            for path, temporary in written.items():
                with _writing(path):
                    os.replace(temporary, path)
        finally:
            for temporary in written.values():
                temporary.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise KvtoolError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def _refuse_special(path: Path) -> None:
    """Raises KvtoolError for a device, a FIFO, a socket or a link, which a rename would replace by a file."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # of a folder the system says so itself
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "a FIFO" if stat.S_ISFIFO(mode) else "a device or socket"
        raise KvtoolError(f"cannot write {path}: it is {kind}, and only a plain file is replaced")


def _write_new(path: Path, data: bytes) -> None:
    """A new file with the mode that the user's umask gives, on the disk before it gets its name."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def refuse_deep(value: object, where: object) -> None:
    """Raises KvtoolError, naming `where`, for a decoded value of more than DEEPEST levels."""
    level: list[object] = [value]
    for _ in range(DEEPEST):
        level = [item for outer in level for item in _items(outer)]
        if not level:
            return
    raise too_deep(where)


def too_deep(where: object) -> KvtoolError:
    """What is said of a value, read or not, that is nested too deep."""
    return KvtoolError(f"{where} is nested too deep: lists and objects may stand in each other {DEEPEST} times")


def _items(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
