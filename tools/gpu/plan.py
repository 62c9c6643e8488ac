"""What `make gpu` runs, in what order and for how long: what matters most comes first. Knows no torch."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

BUDGET_S = 540.0
CLOSING_S = 10.0  # for the last archive, after the last piece
COMPILERS = 16  # processes that compile side by side
KERNEL_TESTS = ("tests/gpu/test_kernels.py", "tests/gpu/test_products.py", "tests/kernels")
ENGINE_TESTS = ("tests/gpu/test_engine.py", "tests/gpu/test_graphs.py", "tests/gpu/test_offload.py")
TIMED_TESTS = ("--processes", "1", "tests/gpu/test_roofline.py", "tests/gpu/test_commands.py")


@dataclass(frozen=True)
class Piece:
    """A module of `tools.gpu.pieces` with the words it is given, and the seconds that are its own.

    `keeps` is False where what was chosen by timing must not stay: then its caches are its own.
    """

    name: str
    what: str
    seconds: float
    module: str
    words: tuple[str, ...] = ()
    keeps: bool = True

    def command(self) -> list[str]:
        """Without the places of the store."""
        return [sys.executable, "-m", f"tools.gpu.pieces.{self.module}", "--piece", self.name]


RUN = (
    Piece("smoke", "versions, and every kernel once against its reference", 20, "smoke"),
    Piece("tests-kernels", "what only a card shows of kernels, then tests/kernels", 95, "tests", KERNEL_TESTS, False),
    Piece("race", "graphs replayed 10,000 times, steps early and in order: equal bits", 30, "race"),
    Piece("kernels", "the device's limits once, all targets of kernels, by pointers and by TMA", 80, "kernels"),
    Piece("steps", "decode steps of whole models, and the timeline of a replayed graph of each", 105, "steps"),
    Piece("prefill", "8k tokens through the 8B model", 25, "steps", ("prefill",)),
    Piece("peers", "torch's own attention on the same pages", 45, "kernels", ("peers",)),
    Piece("compiled", "registers and spills of all that was compiled", 5, "compiled"),
    Piece("tests-engine", "engines, graphs and tiers of tests/gpu", 40, "tests", ENGINE_TESTS, False),
    Piece("tests-timed", "commands that measure, with nobody beside them", 30, "tests", TIMED_TESTS, False),
    Piece("ncu", "counters of four kernels, where ncu is", 35, "profile", ("ncu",)),
    Piece("sanitizer", "memory accesses of three kernels, where compute-sanitizer is", 20, "profile", ("sanitizer",)),
)
TUNE = (Piece("tune", "tiles of eight shapes, the most served first", 520, "tune"),)
PEERS = (
    Piece("peers", "every library that can be imported, on the same pages", 300, "kernels", ("all-peers",)),
    Piece("peer-engines", "other engines on the same weights and prompts", 220, "steps", ("peers",)),
)
PLANS = {"run": RUN, "tune": TUNE, "peers": PEERS}


@dataclass(frozen=True)
class Slot:
    """A piece, and the second of the run at which it must have ended: what those before left over is its own too."""

    piece: Piece
    end_s: float


def schedule(pieces: Sequence[Piece], budget_s: float) -> Iterator[Slot]:
    """Each piece's slot. A larger budget gives all of them more; a smaller one leaves the last ones out."""
    planned_s = sum(piece.seconds for piece in pieces)
    scale = max(1.0, (budget_s - CLOSING_S) / planned_s)
    end_s = 0.0
    for piece in pieces:
        end_s += scale * piece.seconds
        yield Slot(piece, min(end_s, budget_s - CLOSING_S))


def told(pieces: Sequence[Piece], budget_s: float) -> str:
    """The plan, a line a piece: from when to when at the latest, and what it is."""
    lines, begin_s = [], 0.0
    for slot in schedule(pieces, budget_s):
        lines.append(f"{begin_s:4.0f} -{slot.end_s:4.0f} s  {slot.piece.name:14}{slot.piece.what}")
        begin_s = slot.end_s
    return "\n".join([*lines, f"{begin_s:4.0f} -{begin_s + CLOSING_S:4.0f} s  the archive; {budget_s:.0f} s in all"])


NEEDED = ("torch", "triton", "numpy", "safetensors", "msgspec", "yaml", "psutil")
FOR_TESTS = ("pytest", "hypothesis", "transformers", "typer", "rich", "pandas", "matplotlib")


def missing(modules: Sequence[str]) -> list[str]:
    """Those that this interpreter cannot find."""
    return [name for name in modules if find_spec(name) is None]


def missing_modules(needed: Sequence[str] = NEEDED) -> str | None:
    """One line that names what no measurement can do without, or None."""
    if not (absent := missing(needed)):
        return None
    return f"{sys.executable} cannot import {', '.join(absent)}: install them, or put them on PYTHONPATH"


def remark() -> str | None:
    """What a run does without, in words, or None."""
    absent = missing(FOR_TESTS)
    return f"without {', '.join(absent)} some tests cannot run" if absent else None


def workers() -> int:
    """Processes that tests run in, and compile."""
    return min(COMPILERS, os.cpu_count() or 1)


def tool(name: str) -> str | None:
    """The path of one of CUDA's tools, beside its compiler where it is not on PATH."""
    places = (os.environ.get("PATH", os.defpath), f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin")
    return shutil.which(name, path=os.pathsep.join(places))
