"""What NVML tells: power, clocks, temperature, throttling, memory and energy of an NVIDIA card while a run goes on, and
which card `local` is.

Figures are optional: without NVML (no driver, no card, a CPU run) each is None and nothing raises. `local` is a
DeviceError then.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from statistics import fmean, median
from types import TracebackType
from typing import Any

import msgspec

from kvtool.catalog.gpus import Gpu, find_gpu, load_gpus
from kvtool.machine.timers import is_cuda
from kvtool.results import Power
from kvtool.system.errors import DeviceError

# Bits of nvmlDeviceGetCurrentClocksThrottleReasons (nvml.h). Idle and application-set clocks are no throttling.
THROTTLE_REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
}


@dataclass(frozen=True)
class Card:
    """One NVIDIA card as the pynvml module `nvml` knows it."""

    nvml: Any
    handle: Any

    def ask(self, function: str, *arguments: object) -> Any | None:
        """`nvml.function(card, *arguments)`, or None where the card, its driver or the library cannot answer."""
        try:
            return getattr(self.nvml, function)(self.handle, *arguments)
        except (self.nvml.NVMLError, AttributeError):
            return None

    def driver_version(self) -> str | None:
        """The driver's version; older pynvml answers in bytes."""
        try:
            driver = self.nvml.nvmlSystemGetDriverVersion()
        except self.nvml.NVMLError:
            return None
        return driver.decode() if isinstance(driver, bytes) else str(driver)


def open_card(device: str, nvml: Any | None = None) -> Card | None:
    """The card that torch calls `device`, or None where there is no NVML or it does not know the card.

    Found by its UUID where torch tells it: NVML also counts the cards that CUDA_VISIBLE_DEVICES hides.
    """
    nvml = nvml or _import_nvml()
    if nvml is None or not is_cuda(device):
        return None
    uuid = _card_uuid(device)
    try:
        nvml.nvmlInit()
        if uuid is not None:
            return Card(nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
        return Card(nvml, nvml.nvmlDeviceGetHandleByIndex(int(device.partition(":")[2] or 0)))
    except nvml.NVMLError:
        return None


def _import_nvml() -> Any | None:
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


def _card_uuid(device: str) -> str | None:
    import torch

    if not torch.cuda.is_available():
        return None
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return None if uuid is None else str(uuid)


@dataclass(frozen=True)
class NvmlReading:
    """One look at the card. A figure the card does not report is None."""

    power_w: float | None
    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_c: int | None
    memory_used_bytes: int | None
    throttle_bits: int | None


class NvmlSampler:
    """Context manager: reads the card every `interval_s` in a thread; on exit `summary` holds the figures."""

    def __init__(self, card: Card | None, *, interval_s: float = 0.05) -> None:
        self.summary = Power()
        self._card = card
        self._interval_s = interval_s
        self._readings: list[NvmlReading] = []
        self._energy_before_j: float | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> NvmlSampler:
        if self._card is not None:
            self._energy_before_j = read_energy_j(self._card)
            self._readings.append(read_card(self._card))
            self._thread = threading.Thread(target=self._run, args=(self._card,), name="nvml", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._card is None or self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._readings.append(read_card(self._card))
        before_j, after_j = self._energy_before_j, read_energy_j(self._card)
        energy_j = None if before_j is None or after_j is None else after_j - before_j
        self.summary = power_of(self._readings, energy_j=energy_j)

    def _run(self, card: Card) -> None:
        while not self._stop.wait(self._interval_s):
            self._readings.append(read_card(card))


def read_card(card: Card) -> NvmlReading:
    """Every figure as of now."""
    power_mw = card.ask("nvmlDeviceGetPowerUsage")
    memory = card.ask("nvmlDeviceGetMemoryInfo")
    return NvmlReading(
        power_w=None if power_mw is None else power_mw / 1e3,
        sm_clock_mhz=card.ask("nvmlDeviceGetClockInfo", card.nvml.NVML_CLOCK_SM),
        memory_clock_mhz=card.ask("nvmlDeviceGetClockInfo", card.nvml.NVML_CLOCK_MEM),
        temperature_c=card.ask("nvmlDeviceGetTemperature", card.nvml.NVML_TEMPERATURE_GPU),
        memory_used_bytes=None if memory is None else int(memory.used),
        throttle_bits=card.ask("nvmlDeviceGetCurrentClocksThrottleReasons"),
    )


def read_energy_j(card: Card) -> float | None:
    """Joules since the driver was loaded, which only Volta and later count."""
    millijoules = card.ask("nvmlDeviceGetTotalEnergyConsumption")
    return None if millijoules is None else millijoules / 1e3


def power_of(readings: list[NvmlReading], *, energy_j: float | None) -> Power:
    """Figures over all readings; a figure that no reading has stays None."""
    power = [r.power_w for r in readings if r.power_w is not None]
    sm_clock = [r.sm_clock_mhz for r in readings if r.sm_clock_mhz is not None]
    memory_clock = [r.memory_clock_mhz for r in readings if r.memory_clock_mhz is not None]
    memory_used = [r.memory_used_bytes for r in readings if r.memory_used_bytes is not None]
    temperature = [r.temperature_c for r in readings if r.temperature_c is not None]
    throttle = [r.throttle_bits for r in readings if r.throttle_bits is not None]
    seen = {name for bits in throttle for mask, name in THROTTLE_REASONS.items() if bits & mask}
    return Power(
        samples=len(readings),
        power_w=fmean(power) if power else None,
        power_max_w=max(power, default=None),
        sm_clock_mhz=int(median(sm_clock)) if sm_clock else None,
        sm_clock_min_mhz=min(sm_clock, default=None),
        memory_clock_mhz=int(median(memory_clock)) if memory_clock else None,
        temperature_max_c=max(temperature, default=None),
        memory_used_max_bytes=max(memory_used, default=None),
        energy_j=energy_j,
        throttle_reasons=sorted(seen) if throttle else None,
    )


def resolve_gpu(name: str) -> Gpu:
    """The card of --gpu: `local` is the one in this machine, any other name one of gpus.yaml.

    Raises KvtoolError for a name that is not known, DeviceError for `local` without a driver.
    """
    return local_gpu() if name.strip().lower() == "local" else find_gpu(name)


def local_gpu(index: int = 0) -> Gpu:
    """The NVIDIA card `index` of this machine: memory from the driver, and how much of it others hold at the moment;
    figures from gpus.yaml where it is listed.
    """
    driver_name, memory_bytes, free_bytes = _ask_nvml(index)
    listed = next((gpu for gpu in load_gpus() if driver_name in gpu.driver_names), None)
    if listed is None:
        notes = "not in gpus.yaml: only its memory is known"
        listed = Gpu(
            name=driver_name, vendor="NVIDIA", arch=None, memory_bytes=0, source="NVML", confidence="high", notes=notes
        )
    return msgspec.structs.replace(
        listed,
        memory_bytes=memory_bytes,
        memory_source="NVML",
        memory_margin_bytes=0,
        memory_assumed=False,
        kept_bytes=max(0, memory_bytes - free_bytes),
    )


def _ask_nvml(index: int) -> tuple[str, int, int]:
    """A card's name, its memory in bytes less what the driver keeps, and how much of it is free.

    Raises DeviceError when there is no driver or no such card.
    """
    try:
        import pynvml
    except ImportError as error:
        raise DeviceError("gpu 'local' needs NVML: install nvidia-ml-py, or name a card (kvtool gpus)") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise DeviceError(f"gpu 'local': no NVIDIA driver here ({error}); name a card instead (kvtool gpus)") from error
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        name = pynvml.nvmlDeviceGetName(handle)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        total_bytes = int(memory.total) - int(memory.reserved)
        return (name.decode() if isinstance(name, bytes) else name), total_bytes, int(memory.free)
    except pynvml.NVMLError as error:
        raise DeviceError(f"gpu 'local': NVML cannot read card {index} ({error})") from error
    finally:
        pynvml.nvmlShutdown()
