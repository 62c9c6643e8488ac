"""A piece on a card that fails in every way: each word names what one case meets there. Imports no torch."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

from tools.gpu.cases import Case, LacksError, NoDeviceError, Result, run_cases
from tools.gpu.journal import Journal
from tools.gpu.store import BALLAST, Store


def raises(error: BaseException) -> Callable[[Path], Result]:
    def fail(folder: Path) -> Result:
        raise error

    return fail


def raises_after_cuda(folder: Path) -> Result:
    try:
        raise RuntimeError("CUDA error: unspecified launch failure")
    except RuntimeError as error:
        raise ValueError("measuring paged_decode went wrong") from error


def dies_by(number: int) -> Callable[[Path], Result]:
    def die(folder: Path) -> Result:
        os.kill(os.getpid(), number)
        signal.pause()
        return None

    return die


def leaves_early(folder: Path) -> Result:
    os._exit(0)


def hangs(folder: Path) -> Result:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        signal.pause()


def is_deaf(folder: Path) -> Result:
    """Hangs, says so, and leaves somebody behind who holds `alive` open."""
    subprocess.Popen([sys.executable, "-S", "-c", "import signal; signal.pause()"], stdout=(folder / "alive").open("w"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    (folder / "ready").write_text("ready")
    return hangs(folder)


def is_well(folder: Path) -> Result:
    return {"figure": 1}


MEETS: dict[str, Callable[[Path], Result]] = {
    "well": is_well,
    "wrong": raises(ValueError("a wrong answer")),
    "assert": raises(AssertionError()),
    "cuda": raises(RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be")),
    "triton": raises(RuntimeError("Triton Error [CUDA]: misaligned address")),
    "after": raises_after_cuda,
    "memory": raises(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")),
    "exits": raises(SystemExit(0)),
    "lacks": raises(LacksError("ncu is not here")),
    "card": raises(NoDeviceError("no CUDA device: torch sees none")),
    "killed": dies_by(signal.SIGKILL),
    "crashes": dies_by(signal.SIGSEGV),
    "aborts": dies_by(signal.SIGABRT),
    "leaves": leaves_early,
    "hangs": hangs,
    "deaf": is_deaf,
}
WATCHED_S = {"hangs": 0.02}  # it never ends, however slow the machine is


def full_while(folder: Path, kept_free: bool) -> Callable[[int, bytes], int]:
    """A disk that is full while the ballast is there, or whatever is given up. What it takes of a line is torn."""

    def write(descriptor: int, data: bytes) -> int:
        here = str(folder) in os.readlink(f"/proc/self/fd/{descriptor}")
        if here and (kept_free or (folder / BALLAST).exists()):
            os.write(descriptor, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(descriptor, data)

    return write


def main() -> int:
    parser = ArgumentParser()
    for name in ("--folder", "--spare"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--piece")
    parser.add_argument("words", nargs="*")
    given = parser.parse_args()
    if "breaks" in given.words:
        raise ImportError("libcuda.so.1: cannot open shared object file")
    write = os.write
    if given.piece.startswith("full"):
        write = full_while(given.folder, kept_free=given.piece == "full-for-good")
    journal = Journal(Store(given.folder, given.spare, write), given.piece)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def case(number: int, word: str) -> Case:
        return Case(f"{number} {word}", lambda: MEETS[word](given.folder), WATCHED_S.get(word, 60.0))

    return run_cases([case(number, word) for number, word in enumerate(given.words)], journal)


if __name__ == "__main__":
    sys.exit(main())
