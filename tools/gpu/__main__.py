"""`make gpu`: tests and measurements on this machine's GPU with this interpreter. Installs nothing, needs no network.

    python -m tools.gpu                  the run, within GPU_SECONDS or 540 s
    python -m tools.gpu tune             tiles of the attention kernels, timed and kept
    python -m tools.gpu peers            every other library that can be imported, beside ours
    python -m tools.gpu run --dry-run    what would run, and when

What matters most comes first. Whatever fails is told and the next thing runs; --out has the archive of all that was
found, rewritten after every piece, with `run.md` and `targets.md` to read. Exit codes: 0 done, 1 something failed or
there was no time for it, 3 something that is needed is not here, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tools.gpu.archive import ARCHIVE
from tools.gpu.plan import BUDGET_S, PLANS, missing_modules, remark, told
from tools.gpu.run import Run
from tools.gpu.store import CACHES, Store

MEMORY_DISK = Path("/dev/shm")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    given = parsed(arguments)
    pieces = PLANS[given.plan]
    if given.dry_run:
        print(told(pieces, given.seconds))
        return 0
    if (lack := missing_modules()) is not None:
        print(f"make gpu: {lack}", file=sys.stderr)
        return 3
    if (lack := remark()) is not None:
        say(f"make gpu: {lack}")
    return carried_out(Run(pieces, *stores(given.out, given.work), given.seconds, say=say))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m tools.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", nargs="?", choices=tuple(PLANS), default="run", help="what to do (default: run)")
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder for the archive")
    parser.add_argument("--work", type=Path, default=None, help="where a folder of all files is made (default: /tmp)")
    budget_s = float(os.environ.get("GPU_SECONDS") or BUDGET_S)
    parser.add_argument("--seconds", type=float, default=budget_s, help="of all pieces (default: GPU_SECONDS, or 540)")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and when")
    return parser.parse_args(arguments)


def stores(out: Path, work: Path | None) -> tuple[Store, Store]:
    """Where files are kept, in a folder of their own, and where the archive is. What an earlier run found is gone; what
    it compiled stays."""
    work = (work or Path(tempfile.gettempdir())).resolve() / f"kvtool-gpu-{os.getuid()}"
    for old in work.iterdir() if work.is_dir() else ():
        if old.name != CACHES:
            shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)
    spare = (MEMORY_DISK if MEMORY_DISK.is_dir() else Path(tempfile.gettempdir())) / f"kvtool-gpu-{os.getpid()}"
    return Store(work, spare), Store(out.resolve(), spare)


def carried_out(run: Run) -> int:
    """Run it all; Ctrl-C and a polite kill keep what was found."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        outcomes = run.all()
    except KeyboardInterrupt:
        print(f"make gpu: interrupted; what was found is in {run.out.folder / ARCHIVE}", file=sys.stderr)
        return 130
    lack = next((outcome.no_device for outcome in outcomes if outcome.no_device), None)
    if lack is not None:
        print(f"make gpu: {lack}", file=sys.stderr)
        return 3
    wrong = [outcome.piece for outcome in outcomes if not outcome.is_good]
    if wrong:
        print(f"make gpu: not whole: {', '.join(wrong)}; all is in {run.out.folder / ARCHIVE}", file=sys.stderr)
        return 1
    print(f"make gpu: all is well, and in {run.out.folder / ARCHIVE}")
    return 0


def say(line: str) -> None:
    """Seen at once by whoever watches a pipe; that nobody reads it any more ends no run."""
    with suppress(OSError):
        print(line, flush=True)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
