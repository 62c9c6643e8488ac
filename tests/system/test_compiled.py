"""C code is built once, kept by what it is made of, and refused with the reason where it cannot be built."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvtool.system.compiled import Compiled, _is_as_built, build, load_library

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="compiling needs gcc")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two units and a header in counting/c, and a cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "counting" / "c"
    folder.mkdir(parents=True)
    (folder / "next.h").write_text("int next(int);\n")
    (folder / "next.c").write_text("#ifndef STEP\n#define STEP 1\n#endif\nint next(int x) { return x + STEP; }\n")
    (folder / "twice.c").write_text('#include "next.h"\nint twice(int x) { return next(next(x)); }\n')
    return folder


def cached(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache" / "kvtool").iterdir())


@needs_gcc
def test_a_folder_becomes_one_library(sources: Path, tmp_path: Path) -> None:
    found = load_library(sources)
    assert found.reason is None
    assert found.handle is not None
    assert found.handle.twice(40) == 42
    (name,) = cached(tmp_path)
    assert name.startswith("counting-")


@needs_gcc
def test_other_flags_and_other_code_are_other_libraries(sources: Path, tmp_path: Path) -> None:
    load_library(sources)
    stepping = load_library(sources, ["-DSTEP=10"]).handle
    assert stepping is not None
    assert stepping.twice(1) == 21
    (sources / "next.h").write_text("int next(int x);\n")
    load_library(sources)
    assert len(cached(tmp_path)) == 3


@needs_gcc
def test_what_is_built_is_not_built_again(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build("gcc", sources, (), tmp_path / "cache")
    commands: list[list[str]] = []
    run = subprocess.run
    monkeypatch.setattr(
        subprocess, "run", lambda command, **options: (commands.append(command), run(command, **options))[1]
    )
    assert build("gcc", sources, (), tmp_path / "cache") == built
    assert commands == [["gcc", "--version"]]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [built.name]


def emptied(library: Path) -> None:
    library.write_bytes(b"")


def truncated(library: Path) -> None:
    library.write_bytes(library.read_bytes()[:-4096])


def flipped(library: Path) -> None:
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(content)


def written_by_all(library: Path) -> None:
    flipped(library)  # what somebody else put there, with a digest that fits it
    content = library.read_bytes()[:-32]
    library.write_bytes(content + hashlib.sha256(content).digest())
    library.chmod(0o777)


def linked(library: Path) -> None:
    library.rename(library.with_suffix(".elsewhere"))
    library.symlink_to(library.with_suffix(".elsewhere"))


@needs_gcc
@pytest.mark.parametrize("spoil", [emptied, truncated, flipped, written_by_all, linked])
def test_a_library_that_is_not_as_it_was_built_is_built_again(
    sources: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    library = build("gcc", sources, (), tmp_path / "cache")
    good = library.read_bytes()
    spoil(library)
    assert build("gcc", sources, (), tmp_path / "cache") == library
    assert library.read_bytes() == good
    assert not library.is_symlink()
    assert stat.S_IMODE(library.stat().st_mode) == 0o700


@needs_gcc
def test_a_library_or_a_folder_of_another_user_is_not_used(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_library(sources)
    (library,) = (tmp_path / "cache" / "kvtool").glob("*.so")
    monkeypatch.setattr(os, "geteuid", lambda: library.stat().st_uid + 1)
    assert not _is_as_built(library)
    found = load_library(sources)
    assert found.handle is None
    assert "belongs to another user" in str(found.reason)


@needs_gcc
def test_a_cache_that_others_may_write_is_made_private(sources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "kvtool"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    load_library(sources)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_a_user_without_a_home_is_the_reason(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/gcc")
    assert "no home folder" in str(load_library(sources).reason)


@needs_gcc
def test_a_source_that_does_not_compile_is_refused_and_leaves_no_file(sources: Path, tmp_path: Path) -> None:
    (sources / "broken.c").write_text("int broken(")
    found = load_library(sources)
    assert found.handle is None
    assert found.reason is not None
    assert "gcc refuses it" in found.reason
    assert "broken.c" in found.reason
    assert cached(tmp_path) == []


@needs_gcc
def test_a_cache_that_cannot_be_written_is_the_reason(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = load_library(sources)
    assert found.handle is None
    assert "it cannot be built" in (found.reason or "")


def test_a_machine_without_gcc_says_so(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert load_library(sources) == Compiled(None, "there is no gcc")


def test_it_knows_no_torch() -> None:
    command = [sys.executable, "-c", "import sys, kvtool.system.compiled; print('torch' in sys.modules)"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"
