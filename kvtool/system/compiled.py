"""C code of ours as a library of this machine: built once by its gcc, in seconds, and kept for the next process.

Knows no tensors. Nothing may depend on it: whoever calls compiled code has a twin of it for machines without gcc.

A kept library runs with the user's rights, so it is used only where nobody else can have written it, and only as whole
as it was built: the SHA-256 of its bytes stands behind them, where a loader of ELF files does not look.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvtool.system.interrupts import interruptible

FLAGS = ("-O3", "-march=native", "-fPIC", "-std=gnu11")
BUILD_LIMIT_S = 60.0
DIGEST_BYTES = 32  # of a SHA-256
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Compiled:
    """A loaded library, or in words why there is none."""

    handle: ctypes.CDLL | None
    reason: str | None = None


def load_library(sources: Path, flags: Sequence[str] = ()) -> Compiled:
    """The `*.c` files of a folder as one library. They may include the folder's `*.h`; `flags` are added to FLAGS.

    Only libm is linked: a process that uses `-fopenmp` must have loaded OpenMP's library before, as torch has.
    """
    compiler = shutil.which("gcc")
    if compiler is None:
        return Compiled(None, "there is no gcc")
    try:
        return Compiled(ctypes.CDLL(str(build(compiler, sources, flags, cache_folder()))))
    except subprocess.CalledProcessError as error:
        told = error.stderr.decode(errors="replace").strip().splitlines()
        return Compiled(None, f"gcc refuses it: {told[0] if told else error}")
    except (OSError, subprocess.SubprocessError) as error:
        return Compiled(None, f"it cannot be built: {error}")


def build(compiler: str, sources: Path, flags: Sequence[str], folder: Path) -> Path:
    """The library in `folder`, named after all that it depends on, built where it is not there as it was.

    Raises OSError or SubprocessError.
    """
    options = [*FLAGS, *flags]
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=BUILD_LIMIT_S).stdout
    files = sorted(sources.glob("*.[ch]"))
    made_of = (*(path.read_bytes() for path in files), " ".join(options).encode(), version, _cpu())
    library = folder / f"{sources.parent.name}-{hashlib.sha256(b'|'.join(made_of)).hexdigest()[:16]}.so"
    _make_private(folder)
    if _is_as_built(library):
        return library
    with interruptible(), tempfile.TemporaryDirectory(dir=folder) as temporary:
        # Compiled and linked apart: linking with -fopenmp would load a second OpenMP, and two fight for the cores.
        units = [path for path in files if path.suffix == ".c"]
        objects = [f"{path.stem}.o" for path in units]
        for step in (["-c", *map(str, units), *options], ["-shared", *objects, "-lm", "-o", "built.so"]):
            subprocess.run([compiler, *step], check=True, capture_output=True, cwd=temporary, timeout=BUILD_LIMIT_S)
        built = Path(temporary) / "built.so"
        content = built.read_bytes()
        built.write_bytes(content + hashlib.sha256(content).digest())
        built.chmod(0o700)
        os.replace(built, library)
    return library


def _make_private(folder: Path) -> None:
    """The folder, which nobody else may write to. Raises OSError where it is another user's."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise OSError(f"{folder} belongs to another user")
    if found.st_mode & OTHERS_WRITE:
        folder.chmod(stat.S_IMODE(found.st_mode) & ~OTHERS_WRITE)


def _is_as_built(library: Path) -> bool:
    """Whether it is a file of this user, that no other can write, with the bytes that were built."""
    try:
        found = library.lstat()
        content = library.read_bytes()
    except OSError:
        return False
    ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & OTHERS_WRITE
    return ours and hashlib.sha256(content[:-DIGEST_BYTES]).digest() == content[-DIGEST_BYTES:]


def cache_folder() -> Path:
    """What this machine keeps between processes: $XDG_CACHE_HOME/kvtool, by default ~/.cache/kvtool.

    Raises OSError for a user without a home.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvtool"
    except RuntimeError as error:
        raise OSError("this user has no home folder, and XDG_CACHE_HOME is not set") from error


def _cpu() -> bytes:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return b"".join(sorted({line for line in lines if line.startswith((b"model name", b"flags", b"Features"))}))
