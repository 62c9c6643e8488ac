"""The accelerators of gpus.yaml, found by the names that people type. Knows no driver."""

from __future__ import annotations

import functools
from pathlib import Path

import msgspec
import yaml

from kvtool.errors import KvtoolError, did_you_mean

_SCHEMA = "kvtool.gpus/1"


class Gpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One card. Bandwidths in decimal GB/s (links per direction), rates in dense TFLOP/s; None where no source says.

    `memory_bytes` is what the driver reports, or the card's decimal figure when `memory_assumed`. `register_file_bytes`
    is per compute unit, `l2_bytes` per device.
    """

    name: str
    vendor: str
    arch: str | None
    memory_bytes: int
    source: str
    confidence: str
    memory_assumed: bool = False
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


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: str
    gpus: list[Gpu]


@functools.cache
def load_gpus() -> tuple[Gpu, ...]:
    """Every card of the packaged gpus.yaml, in its order; read once."""
    raw = yaml.load(Path(__file__).with_name("gpus.yaml").read_bytes(), Loader=yaml.CSafeLoader)
    file = msgspec.convert(raw, _File)
    if file.schema != _SCHEMA:
        raise KvtoolError(f"gpus.yaml has schema {file.schema!r}: this kvtool reads {_SCHEMA}")
    return tuple(file.gpus)


def find_gpu(name: str) -> Gpu:
    """The card of that name in any case, with or without its memory suffix.

    Raises KvtoolError with the nearest names, or with the candidates when a short name fits several and none of them
    lists it as its alias.
    """
    gpus, wanted = load_gpus(), _key(name)
    exact = [gpu for gpu in gpus if wanted in {_key(known) for known in (gpu.name, *gpu.aliases)}]
    found = exact or [gpu for gpu in gpus if wanted in _short_names(gpu.name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise KvtoolError(f"gpu {name!r} fits several cards: write one of {', '.join(gpu.name for gpu in found)}")
    known = [known for gpu in gpus for known in (gpu.name, *gpu.aliases)]
    raise KvtoolError(f"unknown gpu {name!r}{did_you_mean(name, known) or ' (kvtool gpus lists them)'}")


def _key(name: str) -> str:
    return name.strip().lower().replace("-", "").replace("_", "").replace(" ", "")


def _short_names(name: str) -> set[str]:
    """`H100-SXM-80GB` -> `h100`, `h100sxm`: the name cut at each hyphen."""
    parts = name.split("-")
    return {_key("".join(parts[:end])) for end in range(1, len(parts))}
