"""The accelerators of gpus.yaml, found by the names that people type. Knows no driver."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from kvtool.system.errors import KvtoolError, did_you_mean
from kvtool.units import GIB, MIB, format_bytes

_SCHEMA = "kvtool.gpus/1"
# On the cards of which both are known an engine is told 0.3 to 0.8 GiB less than nvidia-smi shows: the driver's part.
_DRIVER_BYTES, _DRIVER_MARGIN_BYTES = round(0.45 * GIB), round(0.35 * GIB)
# A card of which only the size is known: drivers report 1 to 1.5 % less than its GiB.
_CAPACITY_SHARE, _CAPACITY_MARGIN = 0.9875, 0.015
# What Metal recommends to use of an Apple chip's memory: 2/3 to 32 GiB (21,845 MiB), 3/4 above (73,728 MiB of 96 GiB).
_SMALL_METAL_GIB, _SMALL_METAL_SHARE, _METAL_SHARE = 32, 2 / 3, 3 / 4
GIVEN_MEMORY = "given by --gpu-memory"
_MAKERS = ("nvidia", "geforce", "rtx", "rx", "tesla", "amd", "instinct", "radeon", "apple", "intel", "huawei")
_WITH_MAKER = re.compile(rf"^(?:{'|'.join(_MAKERS)})+(?=[a-z]?\d)")


class Gpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One card. Bandwidths in decimal GB/s (links per direction), rates in dense TFLOP/s; None where no source says.

    `memory_bytes` is the total that an engine is told, good to `memory_margin_bytes`; `memory_assumed` where it follows
    from the card's size alone. `kept_bytes` of it are the system's (unified memory) or other processes'.
    `register_file_bytes` is per compute unit, `l2_bytes` per device.
    """

    name: str
    vendor: str
    arch: str | None
    memory_bytes: int
    source: str
    confidence: str
    memory_source: str | None = None
    memory_margin_bytes: int = 0
    memory_assumed: bool = False
    kept_bytes: int = 0
    memory_bandwidth_gbps: float | None = None
    bf16_tflops: float | None = None
    fp8_tflops: float | None = None
    link_gbps: float | None = None
    pcie_gbps: float | None = None
    compute_units: int | None = None
    compute_unit_kind: str | None = None
    l2_bytes: int | None = None
    register_file_bytes: int | None = None
    aliases: list[str] = []
    driver_names: list[str] = []
    notes: str | None = None

    @property
    def free_bytes(self) -> int:
        """What an engine can have at most."""
        return self.memory_bytes - self.kept_bytes


class _Memory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A card's memory as the file has it, see there: one of `engine_gib`, `smi_mib`, `capacity_gib`, `metal_gib`."""

    source: str
    engine_gib: float | None = None
    smi_mib: int | None = None
    capacity_gib: int | None = None
    metal_gib: list[int] = []
    kept_gib: float = 0
    assumed: bool = False

    def facts(self) -> dict[str, Any]:
        """The fields of a Gpu that follow."""
        if self.engine_gib is not None:
            return {
                "memory_bytes": round(self.engine_gib * GIB),
                "memory_source": self.source,
                "kept_bytes": round(self.kept_gib * GIB),
                "memory_assumed": self.assumed,
                "memory_margin_bytes": round(self.engine_gib * _CAPACITY_MARGIN * GIB) if self.assumed else 0,
            }
        if self.smi_mib is not None:
            return {
                "memory_bytes": self.smi_mib * MIB - _DRIVER_BYTES,
                "memory_source": f"nvidia-smi shows {self.smi_mib:,} MiB, of which the driver is taken to keep "
                f"{format_bytes(_DRIVER_BYTES)}; {self.source}",
                "memory_margin_bytes": _DRIVER_MARGIN_BYTES,
                "memory_assumed": self.assumed,
            }
        if self.capacity_gib is None:
            raise KvtoolError(f"gpus.yaml: a memory without a figure ({self.source})")
        return {
            "memory_bytes": round(self.capacity_gib * _CAPACITY_SHARE * GIB),
            "memory_source": f"its {self.capacity_gib} GiB less what drivers usually keep; {self.source}",
            "memory_margin_bytes": round(self.capacity_gib * _CAPACITY_MARGIN * GIB),
            "memory_assumed": True,
        }


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: str
    gpus: list[dict[str, Any]]


@functools.cache
def load_gpus() -> tuple[Gpu, ...]:
    """Every card of the packaged gpus.yaml, in its order; read once."""
    raw = yaml.load(Path(__file__).with_name("gpus.yaml").read_bytes(), Loader=yaml.CSafeLoader)
    file = msgspec.convert(raw, _File)
    if file.schema != _SCHEMA:
        raise KvtoolError(f"gpus.yaml has schema {file.schema!r}: this kvtool reads {_SCHEMA}")
    return tuple(gpu for entry in file.gpus for gpu in _cards(entry))


def _cards(entry: dict[str, Any]) -> Iterator[Gpu]:
    """The card of an entry, or one for each size of memory that an Apple chip comes with."""
    memory = msgspec.convert(entry["memory"], _Memory)
    rest = {key: value for key, value in entry.items() if key != "memory"}
    if not memory.metal_gib:
        yield msgspec.convert({**rest, **memory.facts()}, Gpu)
    for gib in memory.metal_gib:
        share = _SMALL_METAL_SHARE if gib <= _SMALL_METAL_GIB else _METAL_SHARE
        sized = {
            "name": f"{rest['name']}-{gib}GB",
            "aliases": [f"{rest['name'].removeprefix('Apple-').lower()}-{gib}gb"],
            "memory_bytes": gib * GIB,
            "memory_source": f"Metal recommends to use {share:.0%} of it; {memory.source}",
            "kept_bytes": round(gib * (1 - share) * GIB),
        }
        yield msgspec.convert({**rest, **sized}, Gpu)


def find_gpu(name: str) -> Gpu:
    """The card of that name in any case, with or without its memory suffix, or as its driver calls it.

    Raises KvtoolError with the nearest names, or with the candidates when a short name fits several and none of them
    lists it as its alias.
    """
    gpus, wanted = load_gpus(), _key(name)
    found = _named(gpus, wanted) or _named(gpus, f"{wanted}gb") or _named(gpus, f"{wanted}b")
    found = found or [gpu for gpu in gpus if wanted in _short_names(gpu.name)]
    found = found or [gpu for gpu in gpus if name.strip().lower() in gpu.name.lower().split("-")]
    if len(found) == 1:
        return found[0]
    if found:
        raise KvtoolError(f"gpu {name!r} fits several cards: write one of {', '.join(gpu.name for gpu in found)}")
    known = [known for gpu in gpus for known in (gpu.name, *gpu.aliases)]
    raise KvtoolError(f"unknown gpu {name!r}{did_you_mean(name, known) or ' (kvtool gpus lists them)'}")


def _named(gpus: Sequence[Gpu], wanted: str) -> list[Gpu]:
    """Those that have a name, an alias or a driver's name with that key."""
    return [gpu for gpu in gpus if wanted in {_key(known) for known in (gpu.name, *gpu.aliases, *gpu.driver_names)}]


def with_memory(gpu: Gpu | None, *, memory_bytes: int | None = None, free_bytes: int | None = None) -> Gpu | None:
    """The card with the memory of --gpu-memory and what --free-memory says that others leave; a nameless one for
    --gpu-memory alone; None without either. Raises KvtoolError.
    """
    if memory_bytes is not None:
        gpu = _of_memory(gpu, memory_bytes)
    if free_bytes is None:
        return gpu
    if gpu is None:
        raise KvtoolError("--free-memory is what others leave of a card: name it with --gpu, or give --gpu-memory")
    if free_bytes > gpu.memory_bytes + gpu.memory_margin_bytes:
        raise KvtoolError(
            f"--free-memory {format_bytes(free_bytes)} is more than {gpu.name} has ({format_bytes(gpu.memory_bytes)}): "
            "say how large the card is with --gpu-memory"
        )
    return msgspec.structs.replace(gpu, kept_bytes=max(0, gpu.memory_bytes - free_bytes))


def _of_memory(gpu: Gpu | None, memory_bytes: int) -> Gpu:
    """The card with that memory, all of it free. Without a card nothing but its memory is known."""
    source = GIVEN_MEMORY
    if gpu is None:
        name = f"{format_bytes(memory_bytes)} card"
        return Gpu(
            name=name, vendor="", arch=None, memory_bytes=memory_bytes, source=source, confidence="given",
            memory_source=source,
        )  # fmt: skip
    return msgspec.structs.replace(
        gpu, memory_bytes=memory_bytes, memory_source=source, memory_margin_bytes=0, memory_assumed=False, kept_bytes=0
    )


def _key(name: str) -> str:
    """What two spellings of a card have in common: no case, no separators, no maker and no line of its products, which
    may be written together with the number: `rtx4090`."""
    words = name.strip().lower().replace("-", " ").replace("_", " ").split()
    return "".join(_WITH_MAKER.sub("", word) for word in words if word not in _MAKERS)


def _short_names(name: str) -> set[str]:
    """`H100-SXM-80GB` -> `h100`, `h100sxm`: the name cut at each hyphen."""
    parts = name.split("-")
    return {_key("-".join(parts[:end])) for end in range(1, len(parts))} - {""}
