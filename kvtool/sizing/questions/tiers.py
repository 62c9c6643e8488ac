"""Where the cache could live: a card's registers, its L2, its pool in HBM, the node's DRAM and its NVMe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvtool.catalog.gpus import Gpu
from kvtool.results import SizeTier
from kvtool.sizing.fit import MAX_BATCH_SIZE, Budget, largest
from kvtool.sizing.usage import GpuCache
from kvtool.system.errors import KvtoolError
from kvtool.units import MAX_LENGTH_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """What a node has beside its GPUs, in bytes and GB/s; None where it was not said. `dram_gbps`, as measured, goes
    before what the link of a card promises."""

    dram_bytes: int | None = None
    nvme_bytes: int | None = None
    nvme_gbps: float | None = None
    dram_gbps: float | None = None

    def __post_init__(self) -> None:
        if self.nvme_gbps is not None and not 0 < self.nvme_gbps < 1e6:
            raise KvtoolError(f"--nvme-gbps {self.nvme_gbps:g} must be above 0 GB/s, as 7")
        if self.nvme_gbps is not None and self.nvme_bytes is None:
            raise KvtoolError("--nvme-gbps is the speed of --nvme: give its size too, as --nvme 1TB")

    @property
    def given(self) -> bool:
        return self.dram_bytes is not None or self.nvme_bytes is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tier:
    """`reload_gbps` is of the link that `reload_bytes` of one sequence take to HBM."""

    name: str
    scope: str
    capacity_bytes: int | None
    cache: GpuCache
    reload_gbps: float | None = None
    reload_bytes: int = 0


def tiers(
    places: Places,
    gpu: Gpu | None,
    memory: Budget | None,
    *,
    gpu_cache: GpuCache,
    whole_cache: GpuCache,
    context: int,
    batch_size: int,
    shared_prefix: int,
) -> list[SizeTier]:
    """Every tier that is known of, fastest first. A GPU's tiers hold `gpu_cache`, the fullest GPU's part; the node's
    hold `whole_cache`, one copy of everything.
    """
    known = _known(places, gpu, memory, gpu_cache, whole_cache, context)
    return [_filled(tier, context=context, batch_size=batch_size, shared_prefix=shared_prefix) for tier in known]


def _known(
    places: Places, gpu: Gpu | None, memory: Budget | None, part: GpuCache, whole: GpuCache, context: int
) -> Iterator[_Tier]:
    if gpu is not None and memory is not None:
        registers = gpu.compute_units and gpu.register_file_bytes and gpu.compute_units * gpu.register_file_bytes
        pool = None if memory.kv_pool_bytes is None else max(0, memory.kv_pool_bytes)
        for name, capacity in (("registers", registers), ("l2", gpu.l2_bytes), ("hbm", pool)):
            yield _Tier(name=name, scope="gpu", capacity_bytes=capacity, cache=part)
    pcie = places.dram_gbps or (gpu.pcie_gbps if gpu else None)
    to_gpu = part.bytes_per_gpu(tokens=context, batch_size=1)
    if places.dram_bytes is not None:
        yield _Tier(
            name="dram",
            scope="node",
            capacity_bytes=places.dram_bytes,
            cache=whole,
            reload_gbps=pcie,
            reload_bytes=to_gpu,
        )
    if places.nvme_bytes is not None:
        yield _nvme(places, places.nvme_bytes, whole, pcie, to_gpu, context)


def _nvme(places: Places, capacity: int, whole: GpuCache, pcie: float | None, to_gpu: int, context: int) -> _Tier:
    """Its bytes go through DRAM and over PCIe while it reads on: the slower of the two decides."""
    stored = whole.bytes_per_gpu(tokens=context, batch_size=1)
    gbps, size_bytes = places.nvme_gbps, stored
    if gbps is not None and pcie is not None and to_gpu / pcie > stored / gbps:
        gbps, size_bytes = pcie, to_gpu
    return _Tier(
        name="nvme", scope="node", capacity_bytes=capacity, cache=whole, reload_gbps=gbps, reload_bytes=size_bytes
    )


def _filled(tier: _Tier, *, context: int, batch_size: int, shared_prefix: int) -> SizeTier:
    held = tier.cache.bytes_per_gpu
    batch_bytes = held(tokens=context, batch_size=batch_size, shared_prefix=shared_prefix)
    capacity = tier.capacity_bytes
    tokens = sequences = share = None
    if capacity is not None:
        tokens = largest(lambda n: held(tokens=n, batch_size=1) <= capacity, MAX_LENGTH_TOKENS)
        sequences = largest(
            lambda n: held(tokens=context, batch_size=n, shared_prefix=shared_prefix) <= capacity, MAX_BATCH_SIZE
        )
        share = batch_bytes / capacity if capacity else None
    return SizeTier(
        name=tier.name,
        scope=tier.scope,
        capacity_bytes=capacity,
        batch_bytes=batch_bytes,
        batch_share=share,
        tokens=None if tokens == MAX_LENGTH_TOKENS else tokens,
        sequences=sequences,
        reload_gbps=tier.reload_gbps,
        reload_ms=tier.reload_bytes / tier.reload_gbps / 1e6 if tier.reload_gbps else None,
    )
