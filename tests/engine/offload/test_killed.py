"""A run that ends at any moment of a write loses the pages that were not whole, and no other."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from kvtool.engine.offload.folder import PageFolder
from kvtool.engine.offload.notices import Notices
from kvtool.engine.offload.page_file import encode_page, file_bytes
from kvtool.machine.direct_io import AlignedBuffer, write_from
from tests.engine.offload.disk_pages import PAGE_BYTES, RUN, key, open_tier, page, read

PAGES = 4


class Killed(BaseException):
    """The process is gone: nothing of it runs any more, no clean-up either."""


class Dying:
    """The system's calls until death: `left` bytes are still written, then `renames` still happen."""

    def __init__(self, left: int, renames: int) -> None:
        self.left, self.renames = left, renames
        self._pwritev, self._rename = os.pwritev, os.rename

    def pwritev(self, fd: int, views: list[memoryview], offset: int) -> int:
        if self.left < len(views[0]):
            with open(f"/proc/self/fd/{fd}", "r+b") as file:  # what a torn write leaves need not be aligned
                file.seek(offset)
                file.write(views[0][: self.left])
            raise Killed
        self.left -= len(views[0])
        return self._pwritev(fd, views, offset)

    def rename(self, *args: object, **kwargs: object) -> None:
        if self.renames == 0:
            raise Killed
        self.renames -= 1
        self._rename(*args, **kwargs)


@pytest.mark.parametrize("seed", range(4))
def test_fifty_deaths_each_at_a_random_byte_or_before_a_rename(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = AlignedBuffer(file_bytes(PAGE_BYTES)).view
    for death in range(50):
        random, parent, notices = Random(1000 * seed + death), tmp_path / str(death), Notices()
        left, renames = random.randrange(PAGES * len(image)), random.randrange(PAGES + 1)
        whole = min(left // len(image), renames)
        folder = PageFolder(parent)
        with monkeypatch.context() as dying, suppress(Killed):
            calls = Dying(left, renames)
            dying.setattr(os, "pwritev", calls.pwritev)
            dying.setattr(os, "rename", calls.rename)
            for number in range(PAGES):
                encode_page(image, key(number), RUN, memoryview(page(number)))
                folder.write(key(number), lambda fd: write_from(fd, image))
        folder.close()
        tier = open_tier(parent, notices)
        expected = [page(number) if number < whole else None for number in range(PAGES)]
        assert [read(tier, number) for number in range(PAGES)] == expected
        tier.close()
        assert notices.lines == []
        assert len(list((parent / "kvtool-cache").iterdir())) == whole, "an unfinished file was left"
