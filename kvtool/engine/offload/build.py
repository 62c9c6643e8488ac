"""The tiers of an engine, from what was asked and what this machine gives."""

from __future__ import annotations

from collections.abc import Callable

import torch

from kvtool.cache.manager import CacheManager
from kvtool.cache.tiers.options import TierOptions
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.offload.break_even import AlwaysLoad, BreakEven
from kvtool.engine.offload.copies import PageCopies
from kvtool.engine.offload.disk import DiskTier
from kvtool.engine.offload.folder import PageFolder
from kvtool.engine.offload.host import SlotPlace, host_tier
from kvtool.engine.offload.identity import run_identity
from kvtool.engine.offload.notices import Notices
from kvtool.engine.offload.offload import Offload
from kvtool.engine.offload.page_io import WORKERS, DevicePages, HostPages, PageIO
from kvtool.engine.offload.stack import TierStack
from kvtool.engine.pool import KvPool
from kvtool.machine.cu_file import CuFiles


def build_offload(
    loaded: LoadedModel,
    pool: KvPool,
    cache: CacheManager,
    options: TierOptions,
    clock: Callable[[], float],
    notices: Notices,
) -> Offload | None:
    """None, with a warning, where no tier can be had. Raises KvtoolError for a disk folder or a kvikio that cannot be
    used."""
    files = CuFiles(WORKERS) if options.kvikio else None
    place = SlotPlace(loaded.device, on_device=options.kvikio)
    host = host_tier(options.dram_bytes, pool.page_bytes, place, notices, staged=options.disk_folder is not None)
    if host is None:
        return None
    root = run_identity(loaded)
    disk = _disk_tier(options, _page_io(root, pool.page_bytes, loaded.device, files), notices)
    if files is not None and not files.reaches_devices:
        notices.remark("disk tier: GPUDirect Storage is not here, so kvikio moves pages through host memory")
    if disk is None and not host.capacity:
        return None
    break_even = begin_break_even(options, cache.block_size, pool.page_bytes)
    copies = PageCopies(pool.layers, host.slots, clock)
    stack = TierStack(copies, host, disk, exclusive=options.exclusive, break_even=break_even, clock=clock)
    return Offload(cache, stack, options.write, root=root, break_even=break_even, notices=notices)


def _page_io(root: bytes, page_bytes: int, device: torch.device, files: CuFiles | None) -> PageIO:
    return HostPages(root, page_bytes) if files is None else DevicePages(root, page_bytes, device, files)


def _disk_tier(options: TierOptions, pages: PageIO, notices: Notices) -> DiskTier | None:
    if options.disk_folder is None or options.disk_bytes is None:
        return None
    return DiskTier(PageFolder(options.disk_folder), pages, capacity_bytes=options.disk_bytes, notices=notices)


def begin_break_even(options: TierOptions, block_size: int, page_bytes: int) -> BreakEven:
    """Begun with the speeds that were measured before. What a disk reads is copied up from host memory too, unless by
    kvikio."""
    if options.always_load:
        return AlwaysLoad(block_size)
    found, speeds = BreakEven(block_size), dict(options.up_gbps)
    seconds = {tier: page_bytes / gbps / 1e9 for tier, gbps in speeds.items()}
    for tier, load_s in seconds.items():
        copied = tier == "disk" and not options.kvikio
        found.loaded(tier, 1, load_s + (seconds.get("dram", 0.0) if copied else 0.0))
    return found
