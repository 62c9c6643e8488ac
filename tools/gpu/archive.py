"""All that a run has found so far as one file, which is whole at any moment."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

from tools.gpu.store import Store

ARCHIVE = "gpu-report.tar.gz"
LARGEST_FILE_BYTES = 32 << 20  # a log that ran away is cut off there


def packed(store: Store) -> bytes:
    """Every file of the store, as a compressed archive. One that cannot be read is left out, and named in `unread`."""
    buffer, unread = io.BytesIO(), []
    zipped = gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=5, mtime=0)
    with zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
        for name, path in store.files().items():
            try:
                with path.open("rb") as file:
                    _add(tar, name, file.read(LARGEST_FILE_BYTES))
            except OSError as error:
                unread.append(f"{name}: {error}")
        if unread:
            _add(tar, "unread", "\n".join(unread).encode())
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def write_archive(store: Store, out: Store) -> Path:
    """The archive in the folder of `out`, or where that has no room in its spare one; its place. Raises OSError."""
    out.write(ARCHIVE, packed(store))
    return max(out.find(ARCHIVE), key=lambda path: path.stat().st_mtime_ns)


def unpacked(archive: Path) -> dict[str, bytes]:
    """What an archive holds, by name."""
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if member.isfile()]
        return {member.name: file.read() for member in members if (file := tar.extractfile(member)) is not None}
