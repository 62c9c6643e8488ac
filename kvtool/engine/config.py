"""How a model is run: device, dtypes, pages and limits, resolved once and never changed."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvtool.catalog.model import Model
from kvtool.errors import DeviceError, KvtoolError
from kvtool.sizing.dtypes import canonical_dtype

if TYPE_CHECKING:
    import torch

DTYPES = ("fp32", "bf16", "fp16")
DEFAULT_BLOCK_SIZE = 16
MAX_SEED = 2**32 - 1  # of a longer one, torch's CPU generator would see the last 32 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What a run is made with. `weights` is "random", or a folder or .gguf file; `num_layers` None runs them all;
    `graphs` lets decode steps be CUDA graphs where they can be."""

    weights: str = "random"
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    device: str = "auto"
    backend: str = "auto"
    block_size: int = DEFAULT_BLOCK_SIZE
    num_layers: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    prefill_first: bool = False
    prefix_caching: bool = True
    graphs: bool = True
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("block_size", "max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise KvtoolError(f"{name.replace('_', '-')} {getattr(self, name)} must be at least 1")
        if not 0 <= self.seed <= MAX_SEED:
            raise KvtoolError(f"seed {self.seed} must be from 0 to {MAX_SEED}")
        if self.dtype not in ("auto", *DTYPES):
            raise KvtoolError(f"dtype {self.dtype!r} is not one the engine runs: auto, {', '.join(DTYPES)}")
        if self.backend not in ("auto", "triton", "torch"):
            raise KvtoolError(f"backend {self.backend!r} is not one of auto, triton, torch")


def resolve_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, else the CPU. Raises DeviceError for a device that is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if re.fullmatch(r"cpu|cuda(:\d{1,3})?", name) is None:
        raise KvtoolError(f"device {name!r} is not one of auto, cpu, cuda, cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device {name!r} is not here: torch sees {torch.cuda.device_count()} CUDA devices")
    return torch.device(name)


def resolve_backend(name: str, device: torch.device) -> str:
    """`auto` is Triton on a GPU and torch on a CPU. Raises KvtoolError for Triton without a GPU."""
    if name == "auto":
        return "triton" if device.type == "cuda" else "torch"
    if name == "triton" and device.type != "cuda":
        raise KvtoolError("backend 'triton' needs a CUDA device: use 'torch' on a CPU")
    return name


def resolve_dtype(name: str, model: Model, device: torch.device) -> str:
    """`auto` is the model's own dtype; bf16 where the engine does not run it, or it is fp16 on a CPU (slow there)."""
    if name != "auto":
        return name
    own = canonical_dtype(model.dtype or "bf16")
    return own if own in DTYPES and not (own == "fp16" and device.type == "cpu") else "bf16"


def truncated(model: Model, num_layers: int | None) -> Model:
    """The first `num_layers` layers of a model. Raises KvtoolError when it has fewer."""
    if num_layers is None:
        return model
    if not 1 <= num_layers <= model.num_layers:
        raise KvtoolError(f"--num-layers {num_layers} must be from 1 to the {model.num_layers} layers of {model.id}")
    return replace(model, layers=model.layers[:num_layers], params_total=None)


def is_checkpoint(path: Path) -> bool:
    """Whether `path` holds weights: a .gguf file, or a folder with safetensors."""
    return (path.is_file() and path.suffix == ".gguf") or (path.is_dir() and any(path.glob("*.safetensors")))


def available_bytes(device: torch.device) -> int:
    """Memory that can still be had on the device."""
    import torch

    if device.type == "cuda":
        held_for_reuse = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held_for_reuse
    return min(_machine_bytes(Path("/proc/meminfo")), *_container_bytes(Path("/sys/fs/cgroup")))


def default_threads(cores: int, cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """`cores` (torch's own choice: the physical ones this process may run on), or as many as a container's CPU quota
    pays for in whole: threads wait for each other, so one that is held back holds back all."""
    return max(1, min([cores, *_quota_cpus(cgroup)]))


def _quota_cpus(cgroup: Path) -> list[int]:
    """Whole CPUs of the quota by cgroup version 2 or 1; empty where there is none ("max", -1)."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((cgroup / f"cpu/cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return []
    return [int(quota) // int(period)] if quota.strip().isdigit() and int(period) > 0 else []


def _machine_bytes(meminfo: Path) -> int:
    """What the kernel says can be had, else all there is."""
    try:
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _container_bytes(cgroup: Path) -> list[int]:
    """What a container's memory limit leaves, by cgroup version 2 or 1; empty where there is no limit ("max"). File
    pages that nobody reads any more can be had too.
    """
    left = []
    for limit, used, statistics in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            fields = dict(line.split() for line in (cgroup / statistics).read_text().splitlines())
            held = int((cgroup / used).read_text()) - int(fields["inactive_file"])
            left.append(max(0, int((cgroup / limit).read_text()) - held))
        except (OSError, KeyError, ValueError):
            continue
    return left
