"""How much memory and how many threads we believe we have: the machine's, or what a container leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kvtool.machine.memory import _container_bytes, available_bytes
from kvtool.machine.threads import default_threads


def test_a_container_leaves_its_limit_less_what_it_uses(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    (tmp_path / "memory.stat").write_text("anon 1500\ninactive_file 500\n")
    assert _container_bytes(tmp_path) == [3500]
    (tmp_path / "memory.current").write_text("6000\n")
    assert _container_bytes(tmp_path) == [0]
    (tmp_path / "memory.max").write_text("max\n")
    assert _container_bytes(tmp_path) == []
    old = tmp_path / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("900")
    (old / "memory.usage_in_bytes").write_text("100")
    (old / "memory.stat").write_text("inactive_file 0\n")
    assert _container_bytes(tmp_path) == [800]


def test_of_this_machine() -> None:
    assert available_bytes(torch.device("cpu")) > 1 << 28


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_threads_stay_within_a_containers_quota(tmp_path: Path, files: dict[str, str], threads: int) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert default_threads(8, tmp_path) == threads
