"""What a run ran on, for its document: versions, processor, memory, GPU. Never a path, a host name or a user name."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from kvtool import __version__
from kvtool.machine.nvml import Card, open_card
from kvtool.machine.roofline import last_level_cache_bytes
from kvtool.machine.threads import usable_cpus
from kvtool.machine.timers import is_cuda

CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "sve", "bf16")
GPU_FACTS = (
    *("gpu", "gpu_memory_bytes", "gpu_sm_count", "gpu_compute_capability", "cuda", "gpu_driver"),
    *("gpu_sm_clock_max_mhz", "gpu_memory_clock_max_mhz", "gpu_power_limit_w"),
)


def describe_environment(device: str, *, other_load_cores: float | None = None) -> dict[str, Any]:
    """Facts of this machine and of `device`, JSON-clean and flat. None: not known, not measured, or no GPU."""
    return {
        "kvtool": __version__,
        "git_commit": git_commit(Path(__file__).parents[2]),
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        **_software(),
        **_processor(),
        "other_load_cores": other_load_cores,
        "llc_bytes": last_level_cache_bytes(device),
        **_gpu(device),
    }


def describe_client() -> dict[str, Any]:
    """Of a machine that only asks others: the same keys where they say something of it, without importing torch."""
    cpus = usable_cpus()
    return {
        "kvtool": __version__,
        "git_commit": git_commit(Path(__file__).parents[2]),
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": "server",
        "python": platform.python_version(),
        "os": _os_name(),
        **_named_processor(),
        "physical_cores": physical_cores(cpus),
        "logical_cores": len(cpus),
        "memory_bytes": psutil.virtual_memory().total,
    }


def _software() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": _version("torch"),
        "triton": _version("triton"),
        "os": _os_name(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _processor() -> dict[str, Any]:
    import torch

    from kvtool.kernels import cpu_kernels, why_not_compiled

    cpus = usable_cpus()
    return {
        **_named_processor(),
        "physical_cores": physical_cores(cpus),
        "logical_cores": len(cpus),
        "torch_threads": torch.get_num_threads(),
        "cpu_kernels": cpu_kernels(),
        "cpu_kernels_reason": why_not_compiled(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def _named_processor() -> dict[str, Any]:
    fields = parse_cpuinfo(_read(Path("/proc/cpuinfo")))
    flags = set(str(fields.get("flags") or fields.get("Features") or "").split())
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cpu_features": [name for name in CPU_FEATURES if name in flags],
    }


def physical_cores(cpus: set[int], root: Path = Path("/sys/devices/system/cpu")) -> int | None:
    """Distinct cores behind `cpus`: hyper-threads of one core count once. None where Linux does not tell."""
    siblings = {_read(root / f"cpu{cpu}/topology/thread_siblings_list") for cpu in cpus}
    return None if "" in siblings else len(siblings)


def parse_cpuinfo(text: str) -> dict[str, str]:
    """The fields of the first processor in /proc/cpuinfo."""
    lines = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in lines}


def _gpu(device: str) -> dict[str, Any]:
    if not is_cuda(device):
        return dict.fromkeys(GPU_FACTS)
    import torch

    card = torch.cuda.get_device_properties(device)
    return {
        **dict.fromkeys(GPU_FACTS),
        "gpu": card.name,
        "gpu_memory_bytes": card.total_memory,
        "gpu_sm_count": card.multi_processor_count,
        "gpu_compute_capability": f"{card.major}.{card.minor}",
        "cuda": torch.version.cuda,
        **driver_facts(open_card(device)),
    }


def driver_facts(card: Card | None) -> dict[str, Any]:
    """What only NVML tells of a card: driver, highest clocks, power limit. Empty without NVML."""
    if card is None:
        return {}
    limit_mw = card.ask("nvmlDeviceGetEnforcedPowerLimit")
    return {
        "gpu_driver": card.driver_version(),
        "gpu_sm_clock_max_mhz": card.ask("nvmlDeviceGetMaxClockInfo", card.nvml.NVML_CLOCK_SM),
        "gpu_memory_clock_max_mhz": card.ask("nvmlDeviceGetMaxClockInfo", card.nvml.NVML_CLOCK_MEM),
        "gpu_power_limit_w": None if limit_mw is None else limit_mw / 1e3,
    }


def git_commit(checkout: Path) -> str | None:
    """The commit of a kvtool checkout, `-dirty` when files differ from it. None for an installed package."""
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
