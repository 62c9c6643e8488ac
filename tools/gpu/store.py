"""Where a run keeps what it finds: in a folder; on a full disk in the room that was kept free there, then elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

BALLAST = ".ballast"
BALLAST_BYTES = 64 << 20  # more than all that a run finds
CACHES = "caches"  # of compilers: as large as they like, and in no archive

Write = Callable[[int, bytes], int]


@dataclass(frozen=True)
class Store:
    """Files by their names below `folder`, those that it had no room for below `spare`. `write` is the system's."""

    folder: Path
    spare: Path
    write_bytes: Write = os.write

    def begin(self) -> None:
        """Keep some room free. Without room for that there is none to keep."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with suppress(OSError), (self.folder / BALLAST).open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)

    def append(self, name: str, data: bytes) -> None:
        """At the end of a file, where it outlives this process. Raises OSError where no disk has room."""
        self._kept(name, data, os.O_APPEND)

    def write(self, name: str, data: bytes) -> None:
        """A file whole, beside its place and then renamed. Raises OSError where no disk has room."""
        self._kept(name, data, os.O_TRUNC)

    def find(self, name: str) -> list[Path]:
        """The places that hold something of that name: most often one, none where nobody wrote it."""
        return [place / name for place in (self.folder, self.spare) if (place / name).is_file()]

    def below(self, folder: str, name: str) -> list[Path]:
        """All files of that name in a folder and in those below it, of both places."""
        return [path for place in (self.folder, self.spare) for path in sorted((place / folder).rglob(name))]

    def files(self) -> dict[str, Path]:
        """All that was kept, by name; what only `spare` had room for has a name below it."""
        found = {}
        for prefix, place in (("", self.folder), ("spare/", self.spare)):
            for path in sorted(place.rglob("*")) if place.is_dir() else ():
                inside = path.relative_to(place)
                if inside.parts[0] not in (BALLAST, CACHES) and path.suffix != ".part" and path.is_file():
                    found[prefix + inside.as_posix()] = path
        return found

    def room(self, name: str) -> Path:
        """Where a file of that name can be opened by somebody else, as a log; on a full disk in the spare place."""
        for place in (self.folder, self.spare):
            with suppress(OSError):
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                return place / name
        return self.folder / name

    def _kept(self, name: str, data: bytes, how: int) -> None:
        try:
            self._into(self.folder / name, data, how)
            return
        except OSError:
            (self.folder / BALLAST).unlink(missing_ok=True)
        try:
            self._into(self.folder / name, data, how)
        except OSError:
            self._into(self.spare / name, data, how)

    def _into(self, path: Path, data: bytes, how: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        target = path if how == os.O_APPEND else path.with_name(f".{path.name}.{os.getpid()}.part")
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | how, 0o666)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self.write_bytes(descriptor, bytes(rest)) :]
        except OSError:
            if target != path:
                target.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        if target != path:
            os.replace(target, path)
