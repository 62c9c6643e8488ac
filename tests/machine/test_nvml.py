"""NVML sampling against a scripted pynvml: figures, units, what a card cannot tell, and no NVML at all."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from kvtool.machine import nvml as nvml_module
from kvtool.machine.nvml import NvmlReading, NvmlSampler, open_card, power_of
from kvtool.results import Power


class FakeNvml:
    """The part of pynvml that kvtool calls. `missing` names the questions that this card does not answer."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        pass

    def __init__(self, missing=(), throttle=0):
        self.missing, self.throttle = set(missing), throttle
        self.millijoules = 1_000_000
        self.reads = 0
        self.third_read = threading.Event()

    def _answer(self, name, value):
        if name in self.missing:
            raise self.NVMLError(name)
        return value

    def nvmlInit(self):
        self._answer("init", None)

    def nvmlDeviceGetHandleByIndex(self, index):
        return self._answer("handle", f"card {index}")

    def nvmlDeviceGetPowerUsage(self, handle):
        self.reads += 1
        if self.reads == 3:
            self.third_read.set()
        return self._answer("power", 350_500)

    def nvmlDeviceGetClockInfo(self, handle, kind):
        return self._answer("clock", {1: 1755, 2: 2619}[kind])

    def nvmlDeviceGetTemperature(self, handle, kind):
        return self._answer("temperature", 61)

    def nvmlDeviceGetMemoryInfo(self, handle):
        return self._answer("memory", SimpleNamespace(used=5 << 30))

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return self._answer("throttle", self.throttle)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        self.millijoules += 250_000
        return self._answer("energy", self.millijoules)

    def nvmlSystemGetDriverVersion(self):
        return self._answer("driver", b"570.1")


def test_a_run_is_sampled_in_the_background_and_summed_up():
    fake = FakeNvml(throttle=0x04 | 0x01)
    with NvmlSampler(open_card("cuda:3", fake), interval_s=0.001) as sampler:
        assert fake.third_read.wait(timeout=10)
    summary = sampler.summary
    assert summary.samples >= 3
    assert (summary.power_w, summary.power_max_w) == (350.5, 350.5)
    assert (summary.sm_clock_mhz, summary.sm_clock_min_mhz, summary.memory_clock_mhz) == (1755, 1755, 2619)
    assert (summary.temperature_max_c, summary.memory_used_max_bytes) == (61, 5 << 30)
    assert summary.energy_j == 250.0
    assert summary.throttle_reasons == ["power cap"]


def test_no_thread_is_left_behind_when_the_run_fails():
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="the run"), NvmlSampler(open_card("cuda", FakeNvml()), interval_s=0.001):
        raise RuntimeError("the run")
    assert threading.active_count() == before


def test_what_the_card_does_not_answer_is_none():
    fake = FakeNvml(missing={"power", "energy", "throttle", "memory"})
    with NvmlSampler(open_card("cuda", fake)) as sampler:
        pass
    summary = sampler.summary
    assert summary.power_w is summary.energy_j is summary.throttle_reasons is summary.memory_used_max_bytes is None
    assert summary.sm_clock_mhz == 1755


@pytest.mark.parametrize("missing", ["init", "handle"])
def test_a_card_that_nvml_does_not_open_is_no_card(missing):
    assert open_card("cuda", FakeNvml(missing={missing})) is None


def test_a_cpu_has_no_card_even_where_nvml_is_there():
    assert open_card("cpu", FakeNvml()) is None


def test_without_nvml_every_figure_is_none(monkeypatch):
    monkeypatch.setattr(nvml_module, "_import_nvml", lambda: None)
    with NvmlSampler(open_card("cuda")) as sampler:
        pass
    assert sampler.summary == Power()


def test_an_older_library_without_the_question_is_none():
    card = open_card("cuda", FakeNvml())
    assert card.ask("nvmlDeviceGetSomethingNewer") is None


def test_a_card_is_found_by_uuid_where_torch_knows_it(monkeypatch):
    monkeypatch.setattr(nvml_module, "_card_uuid", lambda device: "1-2-3")
    fake = FakeNvml()
    fake.nvmlDeviceGetHandleByUUID = lambda uuid: uuid
    assert open_card("cuda:1", fake).handle == "GPU-1-2-3"


def test_the_driver_version_is_text():
    assert open_card("cuda", FakeNvml()).driver_version() == "570.1"
    assert open_card("cuda", FakeNvml(missing={"driver"})).driver_version() is None


def test_summary_takes_medians_and_extremes():
    def reading(power_w, clock_mhz, bits):
        return NvmlReading(
            power_w=power_w,
            sm_clock_mhz=clock_mhz,
            memory_clock_mhz=None,
            temperature_c=None,
            memory_used_bytes=None,
            throttle_bits=bits,
        )

    summary = power_of([reading(100, 900, 0), reading(200, 1700, 0x40), reading(600, 1800, 0x08)], energy_j=None)
    assert (summary.power_w, summary.power_max_w) == (300, 600)
    assert (summary.sm_clock_mhz, summary.sm_clock_min_mhz) == (1700, 900)
    assert summary.throttle_reasons == ["hardware slowdown", "hardware thermal"]
    assert summary.memory_clock_mhz is None


def test_the_energy_of_a_token_is_known_where_energy_and_tokens_are():
    assert Power(energy_j=250.0).over(tokens=100).energy_per_token_j == 2.5
    assert Power(energy_j=250.0).over(tokens=0) == Power(energy_j=250.0)
    assert Power().over(tokens=100) == Power()
