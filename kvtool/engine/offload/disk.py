"""The disk tier: pages as files, written and read by threads, the least recently used ones removed."""

from __future__ import annotations

import errno
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

from torch import Tensor

from kvtool.cache.tiers.shelf import Key, Shelf
from kvtool.engine.offload.folder import PageFolder
from kvtool.engine.offload.notices import Notices
from kvtool.engine.offload.page_file import BadPageError, file_bytes
from kvtool.engine.offload.page_io import WORKERS, PageIO
from kvtool.units import format_bytes

Done = TypeVar("Done")


class DiskTier:
    """Pages of one size under one fingerprint. Threads move bytes; what is where only the caller's thread changes.

    A page can be read once it has landed: `landed` and `wait` take note of finished writes. A disk that cannot be
    written any more is no tier from then on, with one warning.
    """

    def __init__(self, folder: PageFolder, pages: PageIO, *, capacity_bytes: int, notices: Notices) -> None:
        self.folder = folder
        self.works = True
        self._pages = pages
        self._file_bytes = file_bytes(pages.page_bytes)
        self._notices = notices
        self._shelf = Shelf(capacity_bytes)
        self._writing: dict[Key, Callable[[], None]] = {}
        self._finished: SimpleQueue[tuple[Key, OSError | None]] = SimpleQueue()
        self._threads = ThreadPoolExecutor(WORKERS, thread_name_prefix="kvtool-disk")
        for key, size in folder.scan():
            self._shelf.add(key, size)
        self._make_room(0)

    def __contains__(self, key: Key) -> bool:
        """Whether the page has landed."""
        return key in self._shelf and key not in self._writing

    def is_coming(self, key: Key) -> bool:
        """Whether the page has landed, or is being written."""
        return key in self._shelf

    @property
    def num_writing(self) -> int:
        return len(self._writing)

    def write(self, key: Key, page: Tensor, *, done: Callable[[], None], ready: Callable[[], None]) -> bool:
        """Begin to write. `page` must stay as it is until `done` is called, by this thread; the writing thread calls
        `ready` first. False, and nothing done, where there is no room or the tier has failed."""
        size = self._file_bytes
        if not self.works or key in self._shelf or not self._make_room(size):
            return False
        self._shelf.add(key, size)
        self._shelf.pin(key)
        self._writing[key] = done
        self._begin(self._write, key, page, ready)
        return True

    def _begin(self, work: Callable[..., Done], *arguments: object) -> Future[Done]:
        """In a thread; at once where there are none any more, as in an interpreter that ends before the engine does."""
        try:
            return self._threads.submit(work, *arguments)
        except RuntimeError:
            done: Future[Done] = Future()
            done.set_result(work(*arguments))
            return done

    def _write(self, key: Key, page: Tensor, ready: Callable[[], None]) -> None:
        failure: OSError | None = None
        try:
            ready()
            self.folder.write(key, lambda fd: self._pages.write(fd, key, page))
        except OSError as error:
            failure = error
        finally:
            self._finished.put((key, failure))

    def landed(self) -> None:
        """Take note of the writes that are over."""
        while not self._finished.empty():
            self._land(*self._finished.get())

    def wait(self) -> bool:
        """Until one more write is over; False where none is under way."""
        if not self._writing:
            return False
        self._land(*self._finished.get())
        return True

    def _land(self, key: Key, failure: OSError | None) -> None:
        self._remark_page_cache()
        done = self._writing.pop(key)
        if self.works:
            self._shelf.unpin(key)
        if failure is not None and self.works:
            self._fail(failure)
        done()

    def _remark_page_cache(self) -> None:
        """Known once a file was opened."""
        if self.folder.direct is False:
            self._notices.remark("disk tier: its filesystem has no O_DIRECT, so memory may have answered for the disk")

    def _fail(self, error: OSError) -> None:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if full else f"it cannot be written ({error.strerror or error})"
        self._notices.warn("disk", f"disk tier {self.folder.path}: {why}; this run goes on without a disk tier")
        self.works = False
        self._shelf = Shelf(0)

    def read(self, key: Key, into: Tensor) -> Future[str | None]:
        """Begin to read a page that has landed. The future says what was wrong, None for nothing; give it to
        `finish_read` in any case."""
        self._shelf.pin(key)
        return self._begin(self._read, key, into)

    def _read(self, key: Key, into: Tensor) -> str | None:
        try:
            self.folder.read(key, lambda fd: self._pages.read(fd, key, into))
            return None
        except BadPageError as error:
            return error.kind
        except FileNotFoundError:
            return "missing"
        except OSError as error:
            return f"unreadable ({error.strerror or error})"

    def finish_read(self, key: Key, outcome: str | None) -> bool:
        """Whether the page was read whole. One that was not is forgotten, its file removed, and that is told once."""
        self._remark_page_cache()
        if key not in self._shelf:  # the tier failed meanwhile; the bytes are right all the same
            return outcome is None
        self._shelf.unpin(key)
        if outcome is None:
            self._shelf.touch(key)
            return True
        kind = outcome.partition(" (")[0]
        self._notices.warn(
            kind, f"disk tier {self.folder.path}: a page file was {outcome}; its tokens are computed anew"
        )
        self._forget(key)
        return False

    def _make_room(self, size: int) -> bool:
        """Remove what was used least recently. False where `size` more bytes cannot be had."""
        for key in self._shelf.victims(size):
            self._forget(key)
        return self._shelf.used + size <= self._shelf.capacity

    def _forget(self, key: Key) -> None:
        self._shelf.discard(key)
        try:
            self.folder.remove(key)
        except OSError as error:
            self._notices.warn("remove", f"disk tier {self.folder.path}: a file cannot be removed ({error.strerror})")

    def reset(self) -> None:
        """Forget every page, when none is on its way, and remove its file."""
        for key in list(self._shelf):
            self._forget(key)

    def close(self) -> None:
        """Wait for all writes, and let the folder go."""
        self._threads.shutdown()
        self.landed()
        self.folder.close()

    def check(self) -> None:
        """Every page being written is counted and pinned, and the tier is within its capacity."""
        self._shelf.check()
        if self.works:
            assert all(key in self._shelf and self._shelf.is_pinned(key) for key in self._writing)
            assert self._shelf.used <= self._shelf.capacity, "the disk tier holds more than its capacity"

    def __str__(self) -> str:
        return f"disk tier of {format_bytes(self._shelf.capacity)}, {len(self._shelf)} pages"
