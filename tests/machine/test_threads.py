"""Threads are bound before torch is imported, and fewer of them run beside a busy neighbour."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import cycle

import pytest

from kvtool.machine import threads
from kvtool.machine.threads import MASK, bind_threads, check_threads, threads_beside, usable_cpus
from kvtool.system.errors import KvtoolError

# Imports what `kvtool bench` imports, and says what it was bound to when torch came.
CHILD = """
import builtins, json, os, sys
from kvtool.machine.threads import bind_threads, usable_cpus
sys.argv = ["kvtool", "env", "--json", "--device", "cpu"]
from kvtool.cli import main
try:
    main()
except SystemExit:
    pass
print("torch" in sys.modules, os.environ.get("OMP_PROC_BIND"), len(os.sched_getaffinity(0)), len(usable_cpus()))
"""
few_cpus = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs and their masks"
)


@pytest.fixture
def before_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(threads.psutil.Process, "cpu_affinity", lambda process: [0, 1], raising=False)


def bound(count: int | None = None, device: str = "cpu", **environ: str) -> dict[str, str]:
    """What is said to OpenMP."""
    bind_threads(count, device, environ=environ, gpu=False)
    return environ


@pytest.mark.usefixtures("before_torch")
def test_threads_that_fill_the_machine_are_bound() -> None:
    told = {MASK: "0,1", "OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}
    assert bound() == bound(2) == bound(device="auto") == told
    assert bound(1) == {}, "two processes of one thread each would share the first core"
    assert bound(device="cuda:0") == {}


@pytest.mark.usefixtures("before_torch")
@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_what_the_user_says_of_openmp_stays(name: str) -> None:
    assert bound(**{name: "1"}) == {name: "1", MASK: "0,1"}, "it may bind the first thread, so the CPUs are kept"


def test_it_is_too_late_once_torch_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", threads)
    assert bound() == {}


@pytest.mark.usefixtures("before_torch")
def test_a_child_gets_back_the_cpus_that_its_parent_had(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[set[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: given.append(cpus))
    inherited = {MASK: "0,1,5", "OMP_PROC_BIND": "true"}
    bind_threads(None, "cpu", environ=inherited, gpu=False)
    assert given == [{0, 1, 5}] == [usable_cpus(inherited)]


@pytest.mark.parametrize("value", ["", "all", "0,", "-1", "0-3", "9" * 400])
def test_a_list_of_cpus_that_no_kvtool_wrote(value: str) -> None:
    with pytest.raises(KvtoolError, match=r"KVTOOL_CPUS=.*so unset it"):
        usable_cpus({MASK: value})


@pytest.mark.parametrize(("cpus", "told"), [([3], "one CPU, so write 1$"), ([0, 1], "2 CPUs, so write 1 to 2$")])
def test_more_threads_than_the_inherited_mask_has(cpus: list[int], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.psutil.Process, "cpu_affinity", lambda process: cpus, raising=False)
    monkeypatch.delenv(MASK, raising=False)
    check_threads(len(cpus))
    with pytest.raises(KvtoolError, match=told):
        check_threads(len(cpus) + 1)


@pytest.mark.usefixtures("before_torch")
def test_a_child_of_one_cpu_is_bound_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a parent that says nothing of OpenMP: taskset, a container, another program's bound thread."""
    monkeypatch.setattr(threads.psutil.Process, "cpu_affinity", lambda process: [1], raising=False)
    assert bound() == {}


def test_two_side_by_side_end_with_a_core_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sees the other's core busy, and that one thread, free to move, is faster than two that wait for another."""
    freed: list[set[int]] = []
    monkeypatch.setattr(threads, "set_mask", freed.append)
    monkeypatch.setattr(threads, "usable_cpus", lambda: {0, 1})
    for _ in range(2):
        count, why = threads_beside(1.0, 2, {1: 0.02, 2: 0.4}.__getitem__)
        assert count == 1
        assert why is not None
        assert "1 of 2 threads" in why
    assert freed == [{0, 1}] * 2


@few_cpus
def test_a_verb_binds_before_it_imports_torch_and_still_knows_its_cpus() -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run([sys.executable, "-c", CHILD], env=environ, capture_output=True, text=True, check=True)
    imported, bind, main_thread, usable = done.stdout.split("\n")[-2].split()
    assert (imported, bind) == ("True", "true")
    assert int(main_thread) < int(usable) == len(os.sched_getaffinity(0))


def test_quiet_machines_and_single_threads_are_not_asked() -> None:
    def never(count: int) -> float:
        raise AssertionError("nothing is measured")

    assert threads_beside(0.4, 2, never) == threads_beside(None, 2, never) == (2, None)
    assert threads_beside(3.0, 1, never) == (1, None)


def test_beside_others_the_fastest_number_of_threads_runs_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "set_mask", lambda cpus: None)
    asked: list[int] = []

    def seconds_of(count: int) -> float:
        asked.append(count)
        return {16: 0.5, 14: 0.1, 1: 0.3}[count]

    count, why = threads_beside(1.3, 16, seconds_of)
    assert count == 14
    assert why is not None
    assert why.startswith("others keep 1.3 cores busy: 14 of 16 threads")
    assert asked[:6] == [1, 14, 16] * 2, "in turns"
    assert threads_beside(1.0, 2, lambda count: count * 0.1)[0] == 1


def test_a_few_turns_that_take_ten_times_as_long_count() -> None:
    """As measured beside two busy loops: turns of two threads took 10 ms in the median, and now and then 160."""
    two = cycle([0.010, 0.012, 0.160])
    chosen, _ = threads_beside(2.0, 2, lambda threads: next(two) if threads == 2 else 0.023)
    assert chosen == 1
