"""How much memory the engine believes it has: the machine's, or what a container's limit leaves of it."""

from __future__ import annotations

from pathlib import Path

import torch

from kvtool.engine.config import _container_bytes, _machine_bytes, available_bytes


def test_memory_that_can_be_had(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  1000 kB\nMemAvailable:  600 kB\n")
    assert _machine_bytes(meminfo) == 600 * 1024
    assert _machine_bytes(tmp_path / "absent") > 1 << 20


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
