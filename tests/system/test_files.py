from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kvtool.system.errors import KvtoolError
from kvtool.system.files import read_bytes, write_all, write_atomic


def test_what_cannot_be_read_is_one_line_with_its_name(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(KvtoolError) as refused:
            read_bytes(path)
        assert str(refused.value) == f"cannot read {path}: {reason}"
    with pytest.raises(KvtoolError, match="null character"):
        read_bytes(tmp_path / "a\0b")


@pytest.mark.parametrize("name", ["half \ud800 of a pair", "\udfff"])
def test_a_name_that_is_no_text_is_refused(name: str) -> None:
    with pytest.raises(KvtoolError, match="its name is not text"):
        read_bytes(Path(name))


def test_a_file_larger_than_it_can_be_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", at_most=5) == b"12345"
    with pytest.raises(KvtoolError, match="a is larger than 4 bytes: not a config"):
        read_bytes(tmp_path / "a", at_most=4, what="config")


def test_a_file_is_written_whole_into_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a"
    write_atomic(path, b"1")
    write_atomic(path, b"22")
    assert path.read_bytes() == b"22"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_file_has_the_mode_that_the_umask_gives(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "a", b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


def test_nothing_is_left_of_a_write_that_failed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(KvtoolError, match=r"cannot write .*: Is a directory"):
        write_atomic(tmp_path / "a", b"1")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_only_a_plain_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"0")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "fifo")
    for path, kind in (
        (tmp_path / "link", "symbolic link"),
        (tmp_path / "fifo", "FIFO"),
        (Path("/dev/null"), "device"),
    ):
        before = path.lstat()
        with pytest.raises(KvtoolError, match=rf"cannot write {path}: it is a .*{kind}"):
            write_all({tmp_path / "new": b"1", path: b"1"})
        assert path.lstat().st_ino == before.st_ino
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "link", "real"]
    assert (tmp_path / "real").read_bytes() == b"0"


def test_a_disk_that_fills_up_changes_none_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"0")
    written: list[int] = []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KvtoolError, match=r"cannot write .*b: No space left on device"):
        write_all({tmp_path / "a": b"1", tmp_path / "b": b"2", tmp_path / "c": b"3"})
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"0")]
