"""`make gpu` loses nothing: whatever a piece meets on a card, the next one runs and the archive has what was found.

The card is a fake (`fake_card.py`); processes, signals, logs and files are real.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools.gpu import __main__ as command
from tools.gpu import plan
from tools.gpu.archive import ARCHIVE, unpacked
from tools.gpu.cases import text_is_cuda_error
from tools.gpu.journal import DONE, FAILED, LOST, SKIPPED, STARTED, Event, Journal
from tools.gpu.plan import BUDGET_S, CLOSING_S, PLANS, RUN, Piece, schedule
from tools.gpu.process import ROOT, log_file
from tools.gpu.run import Outcome, Run
from tools.gpu.store import BALLAST, Store

FAKE = Path(__file__).with_name("fake_card.py")


@dataclass(frozen=True)
class Fake(Piece):
    def command(self) -> list[str]:
        return [sys.executable, str(FAKE), "--piece", self.name]


def fake(name: str, words: str) -> Fake:
    return Fake(name, "a fake", 20, "", tuple(words.split()))


@dataclass(frozen=True)
class Deaf:
    """Reading `ready` waits until the process has written that it hangs; `alive` has a writer while anybody that it
    left lives."""

    ready: Path
    alive: int

    def all_are_gone(self) -> bool:
        """Waits for it."""
        os.set_blocking(self.alive, True)
        return os.read(self.alive, 1) == b""


@pytest.fixture
def deaf(tmp_path: Path) -> Iterator[Deaf]:
    work = tmp_path / "work"
    work.mkdir()
    for name in ("ready", "alive"):
        os.mkfifo(work / name)
    made = Deaf(work / "ready", os.open(work / "alive", os.O_RDONLY | os.O_NONBLOCK))
    yield made
    os.close(made.alive)


def new(tmp_path: Path, *pieces: Piece, **settings: object) -> Run:
    spare = tmp_path / "spare"
    stores = Store(tmp_path / "work", spare), Store(tmp_path / "out", spare)
    return Run(pieces, *stores, **{"budget_s": 1000.0, "say": lambda line: None} | settings)


def run(tmp_path: Path, *pieces: Piece, **settings: object) -> Run:
    made = new(tmp_path, *pieces, **settings)
    made.all()
    return made


def carried_out(made: Run) -> int:
    """As the command does it, which hears a polite kill."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        return command.carried_out(made)
    finally:
        signal.signal(signal.SIGTERM, before)


def opened(tmp_path: Path) -> dict[str, bytes]:
    return unpacked(tmp_path / "out" / ARCHIVE)


def ends(found: dict[str, bytes], piece: str) -> dict[str, dict]:
    """By case, from the archive alone; what only the spare disk had room for counts too."""
    lines = b"\n".join(found.get(f"{place}{piece}/events.jsonl", b"") for place in ("", "spare/")).split(b"\n")
    events = []
    for line in lines:
        try:
            events.append(json.loads(line))
        except ValueError:
            continue  # torn
    return {event["case"]: event for event in events if event["state"] != STARTED}


TWENTY = (
    fake("first", "well wrong well cuda well killed well assert well memory"),
    fake("second", "well crashes well triton well hangs well leaves well exits well after well"),
    fake("breaks", "breaks"),
    fake("full", "well well wrong well"),
    fake("full-for-good", "well cuda well wrong well"),
    fake("third", "killed cuda wrong well aborts lacks well hangs well"),
    fake("deaf", "well deaf well"),
    fake("last", "well"),
)
EXPECTED = {
    **dict.fromkeys(("wrong", "assert", "cuda", "triton", "after", "memory", "exits"), FAILED),
    **dict.fromkeys(("killed", "crashes", "aborts", "leaves", "hangs", "deaf"), LOST),
    "well": DONE,
    "lacks": SKIPPED,
}


def deaf_once(deaf: Deaf) -> Callable[[subprocess.Popen[bytes], float], int]:
    """Time that is over for the deaf process as soon as it says that it hangs, and again when it was asked to end."""

    def wait(process: subprocess.Popen[bytes], limit_s: float) -> int:
        if "deaf" not in process.args or process.poll() is not None:
            return process.wait()
        if limit_s > 10:
            assert deaf.ready.read_text() == "ready"
            raise subprocess.TimeoutExpired(process.args, limit_s)
        if limit_s == 4.0:
            raise subprocess.TimeoutExpired(process.args, limit_s)
        return process.wait()

    return wait


def test_twenty_failures_lose_nothing(tmp_path: Path, deaf: Deaf, capsys: pytest.CaptureFixture[str]) -> None:
    """Each case has its end in the archive, with what it met; each that went well has its figure; the last one ran."""
    made = new(tmp_path, *TWENTY, wait=deaf_once(deaf))
    assert carried_out(made) == 1
    assert "not whole: first, second, breaks, full, full-for-good, third, deaf;" in capsys.readouterr().err
    found = opened(tmp_path)
    met = 0
    for piece in TWENTY:
        told = ends(found, piece.name)
        for number, word in enumerate(piece.words):
            if word == "breaks" or (piece.name, number) == ("deaf", 2):
                continue  # no case of a piece that cannot be imported; none behind one that took all the time
            case = f"{number} {word}"
            assert told[case]["state"] == EXPECTED[word], case
            assert word in ("well", "lacks") or told[case]["error"], case
            if word == "well":
                name = f"{piece.name}/{number}-well.json"
                assert json.loads(found.get(name) or found[f"spare/{name}"]) == {"figure": 1}
        met += sum(EXPECTED.get(word) not in (DONE, SKIPPED) for word in piece.words)
    assert met >= 20
    assert "Traceback" in ends(found, "first")["1 wrong"]["traceback"]
    assert "SIGKILL" in ends(found, "first")["5 killed"]["error"]
    assert "Timeout" in ends(found, "second")["5 hangs"]["error"]
    assert b"cannot open shared object file" in found["breaks/log-1.txt"]
    by_name = {outcome.piece: outcome for outcome in made.outcomes}
    assert [by_name[name].is_good for name in ("breaks", "deaf", "last")] == [False, False, True]
    assert by_name["first"].processes == 3
    assert "cannot open shared object file" in by_name["breaks"].ended
    assert by_name["deaf"].ended.startswith("ran out of time")
    assert deaf.all_are_gone()
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {ARCHIVE, "run.md", "targets.md", "targets.json"}
    assert b"5 killed lost: died by SIGKILL" in found["run.md"]


def test_the_archive_is_whole_after_every_piece(tmp_path: Path) -> None:
    """A run that is killed in the next piece has left it."""
    seen: list[list[str]] = []

    def say(line: str) -> None:
        seen.append(sorted(opened(tmp_path)) if (tmp_path / "out" / ARCHIVE).exists() else [])

    run(tmp_path, fake("one", "well"), fake("two", "wrong"), say=say)
    assert {"one/0-well.json", "one/events.jsonl", "one/log-1.txt", "run.md"} <= set(seen[0])
    assert not any(name.startswith("two") for name in seen[0])
    assert "two/events.jsonl" in seen[1]


def test_a_disk_without_room_for_the_archive_has_it_elsewhere(tmp_path: Path) -> None:
    def full(descriptor: int, data: bytes) -> int:
        if str(tmp_path / "out") in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(descriptor, data)

    told: list[str] = []
    work, out = Store(tmp_path / "work", tmp_path / "spare"), Store(tmp_path / "out", tmp_path / "spare", full)
    Run([fake("one", "well")], work, out, 1000.0, say=told.append).all()
    assert any(line.endswith(f"the archive is {tmp_path / 'spare' / ARCHIVE}") for line in told)
    assert "one/0-well.json" in unpacked(tmp_path / "spare" / ARCHIVE)


def test_ctrl_c_keeps_what_was_found(tmp_path: Path, deaf: Deaf, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(process: subprocess.Popen[bytes], limit_s: float) -> int:
        assert deaf.ready.read_text() == "ready"
        raise KeyboardInterrupt

    made = new(tmp_path, fake("one", "well deaf"), fake("two", "well"), wait=interrupted)
    assert carried_out(made) == 130
    found = opened(tmp_path)
    assert (ends(found, "one")["0 well"]["state"], ends(found, "one")["1 deaf"]["state"]) == (DONE, LOST)
    assert "two/events.jsonl" not in found
    assert deaf.all_are_gone()
    assert "interrupted; what was found is in" in capsys.readouterr().err


def test_without_a_card_it_says_so_in_one_line_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = new(tmp_path, fake("smoke", "card well"), fake("two", "well"))
    assert carried_out(made) == 3
    assert [outcome.piece for outcome in made.outcomes] == ["smoke"]
    assert capsys.readouterr().err == "make gpu: no CUDA device: torch sees none\n"
    assert not (tmp_path / "out").exists()


def test_what_this_side_cannot_do_costs_nothing_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document that cannot be read, and a process that cannot be started."""
    (tmp_path / "work" / "old").mkdir(parents=True)
    (tmp_path / "work" / "old" / "kernels.json").write_text("{")

    @dataclass(frozen=True)
    class Unstartable(Fake):
        def command(self) -> list[str]:
            return [str(tmp_path / "no such program")]

    made = run(tmp_path, Unstartable("one", "", 20, ""), fake("two", "well"))
    assert [outcome.is_good for outcome in made.outcomes] == [False, True]
    assert "FileNotFoundError" in made.outcomes[0].ended
    assert "two/0-well.json" in opened(tmp_path)


# --- the plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANS)
def test_every_plan_fits_its_budget_and_runs_modules_that_are_there(name: str) -> None:
    slots = list(schedule(PLANS[name], BUDGET_S))
    assert slots[-1].end_s + CLOSING_S <= BUDGET_S
    assert len({slot.piece.name for slot in slots}) == len(slots)
    for slot in slots:
        assert (Path(plan.__file__).parent / "pieces" / f"{slot.piece.module}.py").is_file()


def test_a_small_budget_leaves_the_last_pieces_out_and_a_large_one_gives_all_more() -> None:
    small, large = (list(schedule(RUN, budget_s)) for budget_s in (150, 1070))
    assert [slot.end_s for slot in small[:3]] == [20, 115, 140]
    assert {slot.end_s for slot in small[3:]} == {140}
    assert [slot.end_s for slot in large[:2]] == [40, 230]


def test_time_that_is_over_starts_nothing(tmp_path: Path) -> None:
    made = run(tmp_path, fake("one", "well"), fake("two", "well"), budget_s=CLOSING_S)
    assert [outcome.ended for outcome in made.outcomes] == ["no time was left"] * 2
    assert [outcome.processes for outcome in made.outcomes] == [0, 0]


def test_the_kernels_own_tests_are_in_the_run_and_tests_keep_no_verdicts() -> None:
    tests = [piece for piece in RUN if piece.module == "tests"]
    words = [word for piece in tests for word in piece.words]
    assert "tests/kernels" in words
    assert set(words) >= {f"tests/gpu/{path.name}" for path in (ROOT / "tests" / "gpu").glob("test_*.py")}
    assert not any(piece.keeps for piece in tests)


def test_a_dry_run_prints_the_plan_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--dry-run", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert [line.split()[4] for line in told.splitlines()[:-1]] == [piece.name for piece in RUN]
    assert told.endswith("540 s in all\n")
    assert not (tmp_path / "out").exists()


def test_an_earlier_run_is_gone_but_for_what_it_compiled_and_nothing_beside_it(tmp_path: Path) -> None:
    for name in ("mine", "mine/caches", "kept"):
        (tmp_path / name).mkdir()
    work, out = command.stores(tmp_path / "out", tmp_path / "kept")
    for name in ("caches/triton/a.cubin", "smoke/events.jsonl", "run.md"):
        (work.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (work.folder / name).write_text("old")
    again, _ = command.stores(tmp_path / "out", tmp_path / "kept")
    assert again.folder == work.folder != tmp_path / "kept"
    assert [path.name for path in work.folder.rglob("*") if path.is_file()] == ["a.cubin"]
    assert (out.folder, (tmp_path / "mine" / "caches").is_dir()) == (tmp_path / "out", True)


def test_what_the_interpreter_lacks_is_named() -> None:
    assert plan.remark() is None
    lack = plan.missing_modules(("json", "no_such_module", "nor_this_one"))
    assert "cannot import no_such_module, nor_this_one:" in str(lack)


# --- its parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "is_lost"),
    [
        ("RuntimeError: CUDA error: device-side assert triggered", True),
        ("RuntimeError: Triton Error [CUDA]: an illegal memory access was encountered", True),
        ("RuntimeError: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`", True),
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB", False),
        ("OutOfResources: out of resource: shared memory, Required: 262144", False),
        ("AssertionError: 3.0 < 2.0", False),
    ],
)
def test_a_process_is_lost_by_errors_of_cuda_and_not_of_memory(text: str, is_lost: bool) -> None:
    assert text_is_cuda_error(text) is is_lost


def test_a_torn_line_costs_that_line_alone(tmp_path: Path) -> None:
    journal = Journal(Store(tmp_path, tmp_path), "piece")
    journal.tell(Event("one", DONE))
    with (tmp_path / "piece" / "events.jsonl").open("ab") as file:
        file.write(b'\n{"case": "two", "sta')
    journal.tell(Event("three", STARTED))
    assert list(journal.ended()) == ["one"]
    assert journal.give_up("died") == ["three"]
    assert journal.ended()["three"].error == "died"


def test_a_log_without_room_is_elsewhere_or_nowhere(tmp_path: Path) -> None:
    """A file stands where a folder would have to."""
    (tmp_path / "piece").write_text("in the way")
    assert Store(tmp_path, tmp_path / "spare").room("piece/log") == tmp_path / "spare" / "piece" / "log"
    nowhere = Store(tmp_path, tmp_path).room("piece/log")
    with log_file(nowhere) as log:
        log.write(b"lost")


def test_the_room_that_was_kept_is_given_up_once(tmp_path: Path) -> None:
    store = Store(tmp_path, tmp_path / "spare")
    store.begin()
    assert (tmp_path / BALLAST).stat().st_size > 0
    store.write("a", b"1")
    assert (tmp_path / BALLAST).exists()
    assert store.files() == {"a": tmp_path / "a"}


def test_an_outcome_is_good_where_all_was_done_and_nothing_went_wrong() -> None:
    assert Outcome("one", 1.0, "done", 1).is_good
    assert not Outcome("one", 1.0, "ran out of time", 1).is_good
    assert not Outcome("one", 1.0, "done", 1, wrong=[("case", FAILED, "no")]).is_good
