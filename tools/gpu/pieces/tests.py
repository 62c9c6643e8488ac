"""pytest on the card, many processes side by side; each test is a case, told as it begins and ends."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.gpu.cases import CASES_FAILED, die_with_parent
from tools.gpu.journal import Journal
from tools.gpu.plan import workers
from tools.gpu.store import Store

OK, FAILED, NONE_LEFT = 0, 1, 5  # of pytest


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, as the run knows it."""
    parser = argparse.ArgumentParser()
    for name in ("--folder", "--spare"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--piece", required=True)
    parser.add_argument("--processes", type=int, default=workers())
    parser.add_argument("words", nargs="*")
    given = parser.parse_args(arguments)
    die_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(
        KVTOOL_GPU_FOLDER=str(given.folder), KVTOOL_GPU_SPARE=str(given.spare), KVTOOL_GPU_PIECE=given.piece
    )
    if given.processes:
        os.environ["OMP_NUM_THREADS"] = "1"
    place, store = given.folder / given.piece, Store(given.folder, given.spare)
    number = sum(1 for _ in place.glob("behind-*.json")) + 1
    store.write(f"{given.piece}/behind-{number}.json", json.dumps(list(Journal(store, given.piece).ended())).encode())
    os.environ["KVTOOL_GPU_BEHIND"] = str(max(store.find(f"{given.piece}/behind-{number}.json")))
    import pytest

    options = ["-m", "gpu", "-p", "tools.gpu.pieces.watch", "-p", "no:cacheprovider", "--durations", "15"]
    options += ["-W", "default", "--continue-on-collection-errors"]  # this machine's versions are its own
    options += [f"--junitxml={place}/junit-{number}.xml", "--tb", "short"]
    side_by_side = ["-n", str(given.processes)] if given.processes else []
    code = int(pytest.main([*options, *side_by_side, *given.words]))
    if given.processes and code in (OK, FAILED, NONE_LEFT):  # others have run all that those processes left
        Journal(store, given.piece).give_up(
            "its process died while it ran, or was ended after too long: see stacks-*.txt"
        )
    return {OK: 0, NONE_LEFT: 0, FAILED: CASES_FAILED}.get(code, code)


if __name__ == "__main__":
    sys.exit(main())
