"""What `kvtool tiers` is asked to measure, and what it measures when it is not told. Knows no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvtool.system.errors import KvtoolError
from kvtool.units import GIB, KIB, MIB

CHUNKS = (8 * KIB, 64 * KIB, 512 * KIB, 4 * MIB, 64 * MIB)
DEPTHS = (1, 4, 16)
MOST_BUFFERS_BYTES = 256 * MIB  # in flight at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class TiersOptions:
    """`chunks` are sizes beside those of the model's pages; `disk` None measures no disk; `point_s` is how long each
    figure is measured. `file_bytes` of the disk are written, fewer where a tenth of it would not stay free."""

    disk: Path | None
    device: str = "auto"
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    block_size: int = 16
    chunks: tuple[int, ...] = CHUNKS
    depths: tuple[int, ...] = DEPTHS
    file_bytes: int = GIB
    point_s: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values in (("block size", (self.block_size,)), ("queue depth", self.depths)):
            for value in values:
                if not 1 <= value <= 4096:
                    raise KvtoolError(f"{name} {value} must be from 1 to 4096")
        for size in self.chunks:
            if not 512 <= size <= MOST_BUFFERS_BYTES:
                raise KvtoolError(f"size of {size} bytes must be from 512 B to 256 MiB")
        if not 0.01 <= self.point_s <= 60:
            raise KvtoolError(f"seconds {self.point_s:g} a figure must be from 0.01 to 60")

    def depths_of(self, size_bytes: int) -> list[int]:
        """Those whose requests fit the buffers."""
        return [depth for depth in self.depths if depth * size_bytes <= MOST_BUFFERS_BYTES] or [1]
