"""The card in this machine, as a scripted pynvml tells of it."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kvtool.catalog.gpus import find_gpu
from kvtool.machine.nvml import local_gpu, resolve_gpu
from kvtool.system.errors import DeviceError


class FakeNvmlError(Exception):
    pass


def fake_nvml(monkeypatch: pytest.MonkeyPatch, *, name: str = "", error: str | None = None) -> None:
    """A pynvml with one card of that name, or none at all."""

    def init() -> None:
        if error:
            raise FakeNvmlError(error)

    module: Any = ModuleType("pynvml")
    module.NVMLError = FakeNvmlError
    module.nvmlInit = init
    module.nvmlShutdown = lambda: None
    module.nvmlDeviceGetHandleByIndex = lambda index: index
    module.nvmlDeviceGetName = lambda handle: name
    module.nvmlMemory_v2 = 2
    memory = SimpleNamespace(total=85_500_000_000, reserved=500_000_000, free=60_000_000_000)
    module.nvmlDeviceGetMemoryInfo = lambda handle, version: memory
    monkeypatch.setitem(sys.modules, "pynvml", module)


def test_local_card_of_the_list_has_its_figures_and_the_drivers_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch, name="NVIDIA H100 80GB HBM3")
    gpu = resolve_gpu("local")
    assert (gpu.name, gpu.memory_bytes, gpu.memory_assumed) == ("H100-SXM-80GB", 85_000_000_000, False)
    assert (gpu.free_bytes, gpu.memory_bandwidth_gbps) == (60_000_000_000, 3350)


def test_local_card_that_nobody_knows_has_only_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch, name="NVIDIA Z1")
    gpu = local_gpu()
    assert (gpu.name, gpu.memory_bytes, gpu.memory_bandwidth_gbps) == ("NVIDIA Z1", 85_000_000_000, None)


def test_local_without_a_driver_is_the_devices_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch, error="NVML Shared Library Not Found")
    with pytest.raises(DeviceError, match="no NVIDIA driver here") as refused:
        resolve_gpu("LOCAL")
    assert refused.value.exit_code == 3
    assert "\n" not in str(refused.value)


def test_any_other_name_is_one_of_the_list() -> None:
    assert resolve_gpu("h100") is find_gpu("h100")
