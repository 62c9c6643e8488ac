"""The disk tier: what was written comes back or is a miss, whatever became of the files; nothing else is touched."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from kvtool.engine.offload.folder import PageFolder
from kvtool.engine.offload.notices import Notices
from kvtool.engine.offload.page_file import HEADER_BYTES, file_bytes
from kvtool.system.errors import KvtoolError
from tests.engine.offload.disk_pages import (
    OTHER_RUN,
    PAGE_BYTES,
    ROOMY,
    file_of,
    in_memory,
    key,
    open_tier,
    page,
    read,
    save,
)

FILE_BYTES = file_bytes(PAGE_BYTES)


def test_what_was_written_is_read_again_in_this_run_and_the_next(tmp_path: Path) -> None:
    notices = Notices()
    tier = open_tier(tmp_path, notices)
    assert save(tier, range(3)) == 3
    assert [read(tier, number) for number in range(3)] == [page(number) for number in range(3)]
    tier.close()
    again = open_tier(tmp_path, notices)
    assert [read(again, number) for number in range(4)] == [*(page(number) for number in range(3)), None]
    again.close()
    assert notices.lines == []


def test_what_is_written_when_the_interpreter_ends_is_whole_too(tmp_path: Path) -> None:
    """Its threads are gone before an engine that Ctrl-C left open writes what it kept back."""
    tier = open_tier(tmp_path, Notices())
    tier._threads.shutdown()
    assert save(tier, range(3)) == 3
    assert read(tier, 2) == page(2)
    tier.close()
    again = open_tier(tmp_path, Notices())
    assert [read(again, number) for number in range(3)] == [page(number) for number in range(3)]
    again.close()


def test_the_folder_is_its_users_alone_and_of_one_process(tmp_path: Path) -> None:
    tier = open_tier(tmp_path, Notices())
    save(tier, range(1))
    assert stat.S_IMODE((tmp_path / "kvtool-cache").stat().st_mode) == 0o700
    assert stat.S_IMODE(file_of(tmp_path, 0).stat().st_mode) == 0o600
    with pytest.raises(KvtoolError, match="in use by another kvtool"):
        PageFolder(tmp_path)
    tier.close()
    (tmp_path / "kvtool-cache").chmod(0o750)
    with pytest.raises(KvtoolError, match="can be read by others, and K and V reveal prompts: chmod 700"):
        PageFolder(tmp_path)


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/etc"), lambda path: path.write_text("a file")])
def test_a_link_or_a_file_in_the_folders_place_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "kvtool-cache")
    with pytest.raises(KvtoolError, match=r"cannot use .*kvtool-cache"):
        PageFolder(tmp_path)


def test_the_least_recently_used_page_goes_first(tmp_path: Path) -> None:
    tier = open_tier(tmp_path, Notices(), pages=3)
    save(tier, range(3))
    assert read(tier, 0) == page(0)
    save(tier, range(3, 4))
    assert [read(tier, number) is not None for number in range(4)] == [True, False, True, True]
    tier.close()
    assert not file_of(tmp_path, 1).exists()


def test_the_order_of_use_and_a_smaller_capacity_hold_in_the_next_run(tmp_path: Path) -> None:
    tier = open_tier(tmp_path, Notices())
    save(tier, range(4))
    tier.close()
    for second, number in enumerate((2, 0, 3, 1)):
        os.utime(file_of(tmp_path, number), (second, second))
    again = open_tier(tmp_path, Notices(), pages=2)
    assert [read(again, number) is not None for number in range(4)] == [False, True, False, True]
    again.close()


@pytest.mark.parametrize("cut", [0, 1, 7, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1, 100_000, FILE_BYTES - 1])
def test_a_truncated_file_is_a_miss(tmp_path: Path, cut: int) -> None:
    notices = Notices()
    tier = open_tier(tmp_path, notices)
    save(tier, range(2))
    os.truncate(file_of(tmp_path, 0), cut)
    assert (read(tier, 0), read(tier, 1)) == (None, page(1))
    assert len(notices.lines) == 1
    assert "a page file was truncated; its tokens are computed anew" in notices.lines[0]
    assert not file_of(tmp_path, 0).exists()
    tier.close()


@pytest.mark.parametrize(
    "place", [0, 8, 12, 16, 32, 48, 56, 60, 2000, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + PAGE_BYTES - 1]
)
def test_a_flipped_bit_is_a_miss_wherever_it_is(tmp_path: Path, place: int) -> None:
    notices = Notices()
    tier = open_tier(tmp_path, notices)
    save(tier, range(1))
    data = bytearray(file_of(tmp_path, 0).read_bytes())
    data[place] ^= 1 << place % 8
    file_of(tmp_path, 0).write_bytes(data)
    assert read(tier, 0) is None
    assert len(notices.lines) == 1
    tier.close()


def test_a_file_of_another_run_or_another_page_is_a_miss(tmp_path: Path) -> None:
    notices = Notices()
    tier = open_tier(tmp_path, notices)
    save(tier, range(3))
    file_of(tmp_path, 0).write_bytes(file_of(tmp_path, 1).read_bytes())
    assert (read(tier, 0), read(tier, 1)) == (None, page(1))
    tier.close()
    other = open_tier(tmp_path, notices, run=OTHER_RUN)
    assert [read(other, number) for number in (1, 2)] == [None, None]
    assert len(notices.lines) == 1
    assert "was foreign" in notices.lines[0]
    other.close()


def test_a_missing_file_a_link_and_a_fifo_are_misses_and_links_are_not_followed(tmp_path: Path) -> None:
    notices = Notices()
    tier = open_tier(tmp_path, notices)
    save(tier, range(3))
    secret = tmp_path / "secret"
    secret.write_bytes(file_of(tmp_path, 1).read_bytes())
    for number in range(3):
        file_of(tmp_path, number).unlink()
    file_of(tmp_path, 1).symlink_to(secret)
    os.mkfifo(file_of(tmp_path, 2))
    assert [read(tier, number) for number in range(3)] == [None, None, None]
    assert file_of(tmp_path, 1).is_symlink()
    assert secret.stat().st_size == FILE_BYTES
    assert [line.partition("file was ")[2].split()[0] for line in notices.lines] == ["missing;", "unreadable"]
    tier.close()


def test_only_files_of_its_own_names_are_removed(tmp_path: Path) -> None:
    open_tier(tmp_path, Notices()).close()
    folder = tmp_path / "kvtool-cache"
    kept = ["notes.txt", "0.page", f"{key(0).hex()}.page.bak", f"{key(0).hex()}.page.0.tmp"]
    for name in [*kept, f"{key(9).hex()}.page.0123abcd.tmp"]:
        (folder / name).write_text("x")
    (folder / f"{key(8).hex()}.page").mkdir()
    tier = open_tier(tmp_path, Notices(), pages=1)
    save(tier, range(20, 23))
    tier.close()
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted([*kept, f"{key(8).hex()}.page", f"{key(22).hex()}.page"])


@pytest.mark.parametrize(("number", "why"), [(errno.ENOSPC, "the disk is full"), (errno.EIO, "it cannot be written")])
def test_a_disk_that_fails_is_no_tier_any_more_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, why: str
) -> None:
    notices = Notices()
    tier = open_tier(tmp_path, notices)
    save(tier, range(2))

    def fails(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwritev", fails)
    landed: list[int] = []
    for page_number in range(2, 6):
        tier.write(key(page_number), in_memory(page(page_number)), done=lambda: landed.append(1), ready=lambda: None)
    while tier.wait():
        pass
    assert landed, "who waits for a write is told of its end, however it ended"
    assert save(tier, range(6, 8)) == 0
    assert [read(tier, number) for number in range(8)] == [None] * 8
    tier.close()
    assert len(notices.lines) == 1
    assert why in notices.lines[0]
    assert sorted(path.name for path in (tmp_path / "kvtool-cache").iterdir()) == [
        f"{key(n).hex()}.page" for n in (0, 1)
    ]


def test_a_filesystem_without_o_direct_is_told_in_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refuses(path: str, flags: int, *rest: object, **more: object) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuses)
    notices = Notices()
    tier = open_tier(tmp_path, notices)
    save(tier, range(2))
    assert [read(tier, number) for number in range(2)] == [page(0), page(1)]
    tier.close()
    assert notices.lines == []
    assert notices.remarks == ["disk tier: its filesystem has no O_DIRECT, so memory may have answered for the disk"]


def test_a_page_larger_than_the_tier_is_not_taken(tmp_path: Path) -> None:
    tier = open_tier(tmp_path, Notices(), pages=0)
    assert save(tier, range(1)) == 0
    tier.close()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KvtoolError, match=r"--tiers disk=.*file/x: cannot use"):
        open_tier(tmp_path / "file" / "x", Notices(), pages=ROOMY)
