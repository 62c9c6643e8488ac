"""One piece after another within one budget. Whatever a piece does, the next one runs, and the archive has them all."""

from __future__ import annotations

import json
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from tools.gpu.archive import write_archive
from tools.gpu.cases import CASES_FAILED, NO_DEVICE, NoDeviceError
from tools.gpu.journal import FAILED, LOST, Event, Journal
from tools.gpu.plan import Piece, Slot, schedule
from tools.gpu.process import GRACE_S, Ended, Wait, run_process
from tools.gpu.store import CACHES, Store
from tools.gpu.summary import as_markdown

LONGEST_WORDS = 200
LEAST_S = 1.0  # in less, nothing is started
KEPT = "kept"  # caches of what is measured with
VERDICTS = "verdicts/"
ENDS = (0, CASES_FAILED)  # of a process that has been through all its cases


@dataclass(frozen=True)
class Outcome:
    """What became of a piece: how its last process ended, and the end of each of its cases."""

    piece: str
    seconds: float
    ended: str
    processes: int
    cases: dict[str, int] = field(default_factory=dict)
    wrong: list[tuple[str, str, str]] = field(default_factory=list)  # case, state, first line
    no_device: str | None = None

    @property
    def words(self) -> str:
        """In short: how many cases ended how, and how the piece did."""
        counts = ", ".join(f"{count} {state}" for state, count in sorted(self.cases.items()))
        return f"{counts or 'no case'}; {self.ended[:LONGEST_WORDS]}"

    @property
    def is_good(self) -> bool:
        """Whether it ran to its end and nothing went wrong in it."""
        return self.ended == "done" and not self.wrong


@dataclass
class Run:
    """A run of `pieces` into `store`, and its archive into `out`. `say` prints a line; `wait` waits for a process."""

    pieces: Sequence[Piece]
    store: Store
    out: Store
    budget_s: float
    clock: Callable[[], float] = time.monotonic
    wait: Wait = subprocess.Popen.wait
    say: Callable[[str], None] = print
    start_s: float = 0.0
    outcomes: list[Outcome] = field(default_factory=list)

    def all(self) -> list[Outcome]:
        """Every piece; those that Ctrl-C or a missing card leaves out have no outcome."""
        self.start_s = self.clock()
        self.store.begin()
        for slot in schedule(self.pieces, self.budget_s):
            self.outcomes.append(outcome := self.caught(slot))
            if outcome.no_device is not None:
                break
            self.close()
            self.say(f"[{self.now_s:4.0f} of {slot.end_s:.0f} s] {outcome.piece}: {outcome.words}")
        return self.outcomes

    def caught(self, slot: Slot) -> Outcome:
        """The piece; what fails on this side costs the next one nothing, and Ctrl-C keeps what was found."""
        try:
            return self.piece(slot)
        except Exception as error:
            self.note(slot.piece.name, traceback.format_exc())
            return Outcome(slot.piece.name, 0.0, f"failed: {type(error).__name__}: {error}", 0)
        except KeyboardInterrupt:
            journal = Journal(self.store, slot.piece.name)
            journal.give_up("the run was interrupted")
            self.outcomes.append(self.outcome(journal, 0.0, "interrupted", 1))
            self.close()
            raise

    @property
    def now_s(self) -> float:
        """Seconds since the run began."""
        return self.clock() - self.start_s

    def piece(self, slot: Slot) -> Outcome:
        """Its processes, one after another while cases are left that no process has begun."""
        piece, journal, begin_s = slot.piece, Journal(self.store, slot.piece.name), self.now_s
        ended, processes = "no time was left", 0
        while (left_s := slot.end_s - self.now_s) >= LEAST_S:
            known = len(journal.ended())
            processes += 1
            log = f"{piece.name}/log-{processes}.txt"
            found = self.process(piece, log, max(LEAST_S, left_s - GRACE_S))
            words = f"{found.words}; {self.last_words(log)}"
            lost = journal.give_up(words)
            is_through = found.code in ENDS and not lost
            ended = "done" if is_through else words
            if is_through or found.code in (NO_DEVICE, None) or len(journal.ended()) == known:
                break
        return self.outcome(journal, self.now_s - begin_s, ended, processes)

    def process(self, piece: Piece, log: str, limit_s: float) -> Ended:
        """One process of the piece, with its caches: Triton's is shared, so that nothing is compiled twice."""
        caches = self.store.folder / CACHES
        more = {
            "TRITON_CACHE_DIR": str(caches / "triton"),
            "XDG_CACHE_HOME": str(caches / (KEPT if piece.keeps else piece.name)),
        }
        places = ["--folder", str(self.store.folder), "--spare", str(self.store.spare), *piece.words]
        command = [*piece.command(), *places]
        return run_process(command, log=self.store.room(log), limit_s=limit_s, more=more, wait=self.wait)

    def last_words(self, log: str) -> str:
        """The end of a log."""
        for path in self.store.find(log):
            with suppress(OSError):
                lines = path.read_bytes()[-2000:].decode(errors="replace").split("\n")
                return " | ".join(line.strip() for line in lines[-12:] if line.strip())[-600:]
        return "no log"

    def outcome(self, journal: Journal, seconds: float, ended: str, processes: int) -> Outcome:
        """What its journal says."""
        ends = journal.ended()
        counts: dict[str, int] = {}
        for event in ends.values():
            counts[event.state] = counts.get(event.state, 0) + 1
        wrong = [(event.case, event.state, event.line) for event in ends.values() if event.state in (FAILED, LOST)]
        return Outcome(journal.piece, seconds, ended, processes, counts, wrong, no_device(ends.values()))

    def close(self) -> None:
        """The summary, the targets and the archive of all pieces so far. What cannot be written is said."""
        for make in (self.take_verdicts, self.summarise, self.judge, self.keep):
            try:
                make()
            except Exception as error:
                self.note("run", traceback.format_exc())
                self.say(f"{make.__name__}: {error}")

    def take_verdicts(self) -> None:
        """Which way of each product was the fastest, with the times of all, as the measurements remember it."""
        for path in (self.store.folder / CACHES / KEPT / "kvtool").glob("products-*.json"):
            self.store.write(f"{VERDICTS}{path.name}", path.read_bytes())

    def summarise(self) -> None:
        """run.json, and run.md for a reader."""
        text = as_markdown(self.outcomes)
        self.store.write("run.json", json.dumps([asdict(each) for each in self.outcomes], indent=1).encode())
        self.store.write("run.md", text.encode())
        self.out.write("run.md", text.encode())

    def judge(self) -> None:
        """targets.json and targets.md of all documents so far."""
        from tools.targets import judged, read_documents

        for name, data in judged(read_documents(self.store.files().values())).items():
            self.store.write(name, data)
            self.out.write(name, data)

    def keep(self) -> None:
        """The archive."""
        place = write_archive(self.store, self.out)
        if place.parent != self.out.folder:
            self.say(f"no room in {self.out.folder}: the archive is {place}")

    def note(self, piece: str, text: str) -> None:
        """What went wrong on this side, into the archive if anything can be written."""
        with suppress(OSError):
            self.store.append(f"{piece}/run-errors.txt", text.encode())


def no_device(events: Iterable[Event]) -> str | None:
    """What a case said that found no card, or None."""
    sign = f"{NoDeviceError.__name__}: "
    return next((event.line.removeprefix(sign) for event in events if event.line.startswith(sign)), None)
