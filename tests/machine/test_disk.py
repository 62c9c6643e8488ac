"""Requests at a file: what they move, how often, and that nothing of the file is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtool.machine import disk
from kvtool.machine.disk import LEAST_ROUNDS, Requests, Scratch, scratch_file, serve
from kvtool.system.errors import DeviceError
from kvtool.units import KIB, MIB


def test_the_file_is_of_random_bytes_and_has_no_name(tmp_path: Path) -> None:
    with scratch_file(tmp_path, 9 * MIB) as scratch:
        assert list(tmp_path.iterdir()) == []
        assert scratch.size_bytes == 8 * MIB
        seen = bytearray()
        serve(scratch, Requests(64 * KIB, 1, "up", lambda page: seen.extend(page[:4])), seconds=0.0)
        assert len(set(seen)) > 32, "zeros would be no test of a disk"
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch_file(tmp_path, 4 * MIB):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "writable_bytes", lambda folder: MIB)
    with (
        pytest.raises(DeviceError, match="has no room: 4 MiB beside a free tenth are needed"),
        scratch_file(tmp_path, MIB),
    ):
        pass


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot measure"), scratch_file(tmp_path / "no", MIB):
        pass


@pytest.mark.parametrize(("direction", "reads"), [("up", 4), ("down", 0), ("both", 2)])
def test_rounds_are_of_requests_of_every_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direction: str, reads: int
) -> None:
    monkeypatch.setattr(disk, "LEAST_ROUND_S", 0.0)
    checked: list[int] = []
    with scratch_file(tmp_path, 4 * MIB) as scratch:
        served = serve(scratch, Requests(8 * KIB, 4, direction, lambda page: checked.append(len(page))), seconds=0.0)
    assert len(served.rates) == LEAST_ROUNDS
    assert len(served.latencies_s) == 4 * LEAST_ROUNDS
    assert checked == [8 * KIB] * reads * LEAST_ROUNDS
    assert served.wall_s > 0


def test_short_rounds_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, *(tick for took_s in (0.01, 0.01, 0.03, 0.03, 0.03) for tick in (1.0, 1.0 + took_s))])
    monkeypatch.setattr(disk.time, "perf_counter", lambda: next(ticks, 9.0))
    monkeypatch.setattr(disk._Worker, "run", lambda worker, count: [0.0] * count)
    served = serve(Scratch(-1, MIB, direct=True), Requests(KIB, 1, "up"), seconds=0.0)
    assert served.rates == pytest.approx([4 * KIB / 0.03] * 3), "requests a round doubled twice"
