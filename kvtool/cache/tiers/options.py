"""What a user asks of tiers: `--tiers dram=4GiB,disk=FOLDER:20GiB` and `--write-policy through|selective:K|back`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvtool.system.errors import KvtoolError, did_you_mean
from kvtool.units import format_bytes, parse_size

EXAMPLE = "write dram=4GiB, disk=FOLDER:20GiB, or both with a comma"
EXCLUSIVE, KVIKIO = "exclusive", "kvikio"
TIERS = ("dram", "disk")


@dataclass(frozen=True, slots=True, kw_only=True)
class WritePolicy:
    """When a page moves down: `through` once it is whole, `selective` once it was hit `hits` times, `back` when it
    leaves the tier above."""

    kind: str = "through"
    hits: int = 0

    @property
    def after_hits(self) -> int | None:
        """Hits after which a page moves down: 0 for `through`; None for `back`, which waits for none."""
        return None if self.kind == "back" else self.hits

    def __str__(self) -> str:
        return f"{self.kind}:{self.hits}" if self.hits else self.kind


@dataclass(frozen=True, slots=True, kw_only=True)
class TierOptions:
    """Capacities below the block pool; None where there is no such tier. `exclusive`: what moves up leaves host memory,
    so that no page takes room in both. `kvikio` moves pages between device and disk, without host memory. `up_gbps` are
    speeds measured before; this run's own join them. `always_load`: even where computing is faster."""

    dram_bytes: int | None = None
    disk_folder: Path | None = None
    disk_bytes: int | None = None
    exclusive: bool = False
    kvikio: bool = False
    write: WritePolicy = WritePolicy()
    up_gbps: tuple[tuple[str, float], ...] = ()
    always_load: bool = False

    @property
    def capacities(self) -> dict[str, int | None]:
        """Bytes by tier."""
        return {"dram": self.dram_bytes, "disk": self.disk_bytes}

    def __str__(self) -> str:
        """Without the folder, which is the user's own affair."""
        named = [f"{name}={format_bytes(size)}" for name, size in self.capacities.items() if size is not None]
        return ",".join([*named, *([EXCLUSIVE] if self.exclusive else []), *([KVIKIO] if self.kvikio else [])])

    def __post_init__(self) -> None:
        if self.exclusive and (self.write.kind != "back" or self.dram_bytes is None):
            raise KvtoolError("--tiers exclusive keeps a page in one place: it needs dram=SIZE and --write-policy back")
        if self.kvikio and (self.disk_folder is None or self.dram_bytes is not None):
            raise KvtoolError(
                "--tiers kvikio takes pages past host memory to the disk: it needs disk=FOLDER:SIZE, and no dram"
            )


def parse_tiers(text: str, write: str = "through") -> TierOptions:
    """The tiers of one --tiers and its --write-policy. Raises KvtoolError."""
    found, switches = tier_items(text, names=TIERS, switches=(EXCLUSIVE, KVIKIO), example=EXAMPLE)
    folder, disk_bytes = _disk(found["disk"]) if "disk" in found else (None, None)
    return TierOptions(
        dram_bytes=tier_bytes(found["dram"], "dram", EXAMPLE) if "dram" in found else None,
        disk_folder=folder,
        disk_bytes=disk_bytes,
        exclusive=EXCLUSIVE in switches,
        kvikio=KVIKIO in switches,
        write=parse_write_policy(write),
    )


def tier_items(
    text: str, *, names: Sequence[str], switches: Sequence[str], example: str
) -> tuple[dict[str, str], set[str]]:
    """What stands behind each `NAME=` of one --tiers, and its switches. Raises KvtoolError, which ends with an
    `example`, for what is neither, is named twice, or has nothing behind it."""
    found: dict[str, str] = {}
    for item in text.split(","):
        name, equals, value = item.strip().partition("=")
        if name not in (*names, *switches):
            near = did_you_mean(name, (*names, *switches))
            raise KvtoolError(f"--tiers {item.strip()!r} is no tier: {example}{near}")
        if name in found:
            raise KvtoolError(f"--tiers names {name} twice: {example}")
        if bool(equals and value) != (name not in switches):
            raise KvtoolError(f"--tiers {item.strip()!r} is not complete: {example}")
        found[name] = value
    if found.keys() <= set(switches):
        raise KvtoolError(f"--tiers names no tier: {example}")
    return {name: found[name] for name in names if name in found}, found.keys() & set(switches)


def tier_bytes(text: str, tier: str, example: str) -> int:
    """The capacity of a tier. Raises KvtoolError for no size, and for none at all."""
    size = parse_size(text, f"--tiers {tier}")
    if size < 1:
        raise KvtoolError(f"--tiers {tier} has no room: {example}")
    return size


def parse_write_policy(text: str) -> WritePolicy:
    """`through`, `selective:2` or `back`. Raises KvtoolError."""
    kind, colon, hits = text.partition(":")
    if kind in ("through", "back") and not colon:
        return WritePolicy(kind=kind)
    if kind == "selective" and hits.isdecimal() and 1 <= int(hits) <= 10**6:
        return WritePolicy(kind=kind, hits=int(hits))
    raise KvtoolError(
        f"--write-policy {text!r} is not one of through, selective:K (K hits, as selective:2), back"
        f"{did_you_mean(kind, ('through', 'selective', 'back'))}"
    )


def _disk(text: str) -> tuple[Path, int]:
    folder, colon, size = text.rpartition(":")
    if not colon or not folder:
        raise KvtoolError(f"--tiers disk={text} does not say how much: {EXAMPLE}")
    if "\0" in folder:
        raise KvtoolError(f"--tiers disk={text!r}: no folder's name has a null character")
    return Path(folder), tier_bytes(size, "disk", EXAMPLE)
