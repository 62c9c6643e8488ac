from __future__ import annotations

import stat
from pathlib import Path

import pytest

from kvtool.errors import KvtoolError
from kvtool.files import read_bytes, write_atomic


def test_what_cannot_be_read_is_one_line_with_its_name(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(KvtoolError) as refused:
            read_bytes(path)
        assert str(refused.value) == f"cannot read {path}: {reason}"


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
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_left_of_a_write_that_failed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(KvtoolError, match=r"cannot write .*: Is a directory"):
        write_atomic(tmp_path / "a", b"1")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
