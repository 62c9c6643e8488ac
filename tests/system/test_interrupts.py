"""Ctrl-C at any moment: exit code 130, one line, no traceback, and every file whole. Signals come at events."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvtool.bench.runs import PROGRAM
from kvtool.system import interrupts

AT_AN_IMPORT = """
import os, signal, sys

class Interrupting:
    count = 0
    def find_spec(self, name, path=None, target=None):
        if Interrupting.count or name == "kvtool.cli":
            Interrupting.count += 1
            if Interrupting.count == when:
                os.kill(os.getpid(), signal.SIGINT)

when = int(sys.argv.pop(1))
sys.meta_path.insert(0, Interrupting())
from kvtool.__main__ import main
try:
    main()
finally:
    print("imports", Interrupting.count, file=sys.stderr)
"""
AT_A_RENAME = """
import os, signal, sys

def interrupting(source, target, replace=os.replace):
    global renames
    replace(source, target)
    renames += 1
    if renames == when:
        os.kill(os.getpid(), signal.SIGINT)

when, renames, os.replace = int(sys.argv.pop(1)), 0, interrupting
from kvtool.__main__ import main
main()
"""
AT_THE_END = """
import os, signal

class Interrupting:
    def __del__(self, kill=os.kill, own=os.getpid(), number=signal.SIGINT):
        kill(own, number)

until_modules_go = Interrupting()
from kvtool.__main__ import main
main()
"""
RUN = ("smollm2-135m", "--num-layers", "1", "--device", "cpu", "--threads", "1")
COMMANDS = {
    "size": ("size", "llama-3.1-8b", "--gpu", "h100"),
    "compare": ("compare", "llama-3.1-8b", "qwen3-8b"),
    "generate": ("generate", *RUN, "--prompt-ids", "1,2", "--output-len", "2"),
    "bench": ("bench", *RUN, "--parts", "latency", "--input-len", "8", "--output-len", "3", "--batch-size", "1"),
}


def interrupted(script: str, when: int, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script, str(when), *args], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("command", "whens"),
    [
        ("size", (1, 20, 60, 120, 180)),
        ("compare", (2, 40, 90, 150, 200)),
        ("generate", (5, 150, 300, 700, 1000, 1250)),
        ("bench", (10, 200, 400, 800, 1100, 1300)),
    ],
)
def test_an_import_does_not_swallow_it(command: str, whens: tuple[int, ...]) -> None:
    for when in whens:
        done = interrupted(AT_AN_IMPORT, when, *COMMANDS[command])
        assert done.returncode == 130, (when, done.stderr)
        assert done.stderr.startswith("kvtool: interrupted\n"), (when, done.stderr)
        assert "Traceback" not in done.stderr


def test_a_run_of_several_is_started_as_the_program_is() -> None:
    script = AT_AN_IMPORT.replace("from kvtool.__main__ import main\ntry:\n    main()", f"try:\n    {PROGRAM[-1]}")
    assert PROGRAM[-1] in script
    done = interrupted(script, 40, *COMMANDS["size"])
    assert (done.returncode, done.stderr.splitlines()[0]) == (130, "kvtool: interrupted")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("when", [1, 2, 4])
def test_every_file_is_whole(tmp_path: Path, when: int) -> None:
    before = dict.fromkeys(("size.json", "size.csv", "size.png", "size-budget.png"), b"of a run before")
    for name, data in before.items():
        (tmp_path / name).write_bytes(data)
    done = interrupted(AT_A_RENAME, when, *COMMANDS["size"], "--out", str(tmp_path))
    assert (done.returncode, done.stderr) == (130, "kvtool: interrupted\n")
    assert "weights 14.96 GiB" in done.stdout
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == list(before)[:when]


@pytest.mark.parametrize(("args", "code"), [(("gpus", "h100"), 0), (("gpus", "h1000"), 2)])
def test_when_all_is_said_the_exit_code_stands(args: tuple[str, str], code: int) -> None:
    done = subprocess.run([sys.executable, "-c", AT_THE_END, *args], capture_output=True, text=True)
    assert done.returncode == code
    assert "interrupted" not in done.stderr


def test_one_that_is_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupts.leave_on_interrupt()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_block_that_keeps_something_is_told_of_it() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        interrupts.leave_on_interrupt()
        leaving = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), interrupts.interruptible():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is leaving
    finally:
        signal.signal(signal.SIGINT, before)
