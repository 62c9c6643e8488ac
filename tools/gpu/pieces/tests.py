"""pytest on the card, many processes side by side; each test is a case, told as it begins and ends.

Every process takes each so-manieth test, so that all of them compile. One that ends is followed by another, which goes
on behind the tests that have ended.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tools.gpu.cases import CASES_FAILED, CUDA_LOST, die_with_parent
from tools.gpu.journal import Journal
from tools.gpu.plan import workers
from tools.gpu.process import log_file
from tools.gpu.store import Store

OK, FAILED, NONE_LEFT = 0, 1, 5  # of pytest
ENDS = (0, CASES_FAILED)


@dataclass(frozen=True)
class Shard:
    """One of `of` processes that share the tests, and what it tells its journal."""

    store: Store
    piece: str
    number: int
    of: int
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its folder, where its journal and its logs are."""
        return f"{self.piece}/{self.number}"

    @property
    def command(self) -> list[str]:
        """One process of it."""
        places = ["--folder", str(self.store.folder), "--spare", str(self.store.spare), "--piece", self.piece]
        return [sys.executable, "-m", __spec__.name, *places, "--shard", str(self.number), str(self.of), *self.words]

    def looked_after(self) -> int:
        """The exit code of its last process: one follows another while tests are left that none has begun."""
        journal, processes = Journal(self.store, self.name), 0
        while True:
            known, processes = len(journal.ended()), processes + 1
            with log_file(self.store.room(f"{self.name}/log-{processes}.txt")) as log:
                code = subprocess.call(self.command, stdout=log, stderr=subprocess.STDOUT)
            how = "was ended after too long: see stacks-*.txt" if code == 1 else f"ended with {code}"
            lost = journal.give_up(f"its process {how}")
            if (code in ENDS and not lost) or len(journal.ended()) == known:
                return code

    def run(self) -> int:
        """Its tests in this process; the exit code as the run knows it."""
        import pytest

        from tools.gpu.pieces.watch import Watch

        place = self.store.room(f"{self.name}/x").parent
        number = sum(1 for _ in place.glob("junit-*.xml")) + 1
        options = ["-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={place}/junit-{number}.xml", "--tb", "short"]
        options += ["--durations", "5", "-W", "default"]  # this machine's versions are its own
        options += ["--continue-on-collection-errors"]
        with (place / f"stacks-{os.getpid()}.txt").open("w") as stacks:
            watch = Watch(Journal(self.store, self.name), stacks, self.number, self.of)
            code = int(pytest.main([*options, *self.words], plugins=[watch]))
        return {OK: 0, NONE_LEFT: 0, FAILED: CASES_FAILED}.get(code, CUDA_LOST)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, as the run knows it."""
    parser = argparse.ArgumentParser()
    for name in ("--folder", "--spare"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--piece", required=True)
    parser.add_argument("--processes", type=int, default=workers())
    parser.add_argument("--shard", type=int, nargs=2, default=None)
    parser.add_argument("words", nargs="*")
    given = parser.parse_args(arguments)
    die_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    store, words = Store(given.folder, given.spare), tuple(given.words)
    if given.shard is not None:
        return Shard(store, given.piece, *given.shard, words).run()
    os.environ["OMP_NUM_THREADS"] = "1"
    shards = [Shard(store, given.piece, number, given.processes, words) for number in range(given.processes)]
    with ThreadPoolExecutor(len(shards)) as pool:
        codes = list(pool.map(Shard.looked_after, shards))
    return next((code for code in codes if code not in ENDS), max(codes))


if __name__ == "__main__":
    sys.exit(main())
