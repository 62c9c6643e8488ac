"""What lies below the pool of pages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.cli.flags.group import Group
from kvtool.cli.values import count_list
from kvtool.system.errors import KvtoolError
from kvtool.units import parse_size, split_list

if TYPE_CHECKING:
    from kvtool.bench.tiers.options import TiersOptions
    from kvtool.cache.tiers.options import TierOptions

_option = partial(typer.Option, rich_help_panel="Tiers below the pool")


@dataclass(frozen=True)
class Tiers(Group):
    """Where cached prefixes go that leave the pool, and when."""

    tiers: Annotated[
        str | None,
        _option(
            metavar="LIST",
            help="dram=4GiB, disk=FOLDER:20GiB or both; exclusive (no page in two), kvikio (past host memory).",
        ),
    ] = None
    write_policy: Annotated[
        str | None,
        _option(help="Pages move down once whole (through), at their K-th hit (selective:K), or evicted (back)."),
    ] = None
    profile: Annotated[
        Path | None, _option(metavar="FILE", help="Speeds that `kvtool tiers --out` measured, to load or compute by.")
    ] = None

    def options(self) -> TierOptions | None:
        """The tiers; None without any. Raises KvtoolError."""
        from kvtool.cache.tiers.options import TIERS, parse_tiers
        from kvtool.results import read_profile

        if self.tiers is None:
            for option, value in (("--write-policy", self.write_policy), ("--profile", self.profile)):
                if value is not None:
                    raise KvtoolError(f"{option} is about --tiers: name those too, as --tiers dram=4GiB")
            return None
        options = parse_tiers(self.tiers, self.write_policy or "through")
        if self.profile is None:
            return options
        speeds = read_profile(self.profile).up_gbps.items()
        return replace(options, up_gbps=tuple((tier, gbps) for tier, gbps in speeds if tier in TIERS))


@dataclass(frozen=True)
class TiersGrid(Group):
    """What `kvtool tiers` measures."""

    disk: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where the disk to measure is mounted; nothing is left there.")
    ] = Path(".")
    no_disk: Annotated[bool, typer.Option("--no-disk", help="Measure host memory alone.")] = False
    chunk_size: Annotated[
        str | None, typer.Option(metavar="LIST", help="Chunks beside the model's own blocks (default: 8KiB to 64MiB).")
    ] = None
    queue_depth: Annotated[str, typer.Option(metavar="LIST", help="Requests in flight at the disk.")] = "1,4,16"
    file_size: Annotated[str, typer.Option(metavar="SIZE", help="Of the file: a tenth of the disk stays free.")] = (
        "1GiB"
    )
    seconds: Annotated[float, typer.Option(help="That each figure is measured.")] = 0.3
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto"
    dtype: Annotated[str, typer.Option(help="Of weights and activations: auto, fp32, bf16 or fp16.")] = "auto"
    kv_cache_dtype: Annotated[str, typer.Option(help="auto (as --dtype), fp32, bf16, fp16, fp8 or fp8_e5m2.")] = "auto"
    block_size: Annotated[int | None, typer.Option(help="Tokens a page (default: 16, on CUDA 64).")] = None
    seed: Annotated[int, typer.Option(min=0, help="Of the places that are read and written.")] = 0

    def options(self) -> TiersOptions:
        """The options. Raises KvtoolError."""
        from kvtool.bench.tiers.options import CHUNKS, TiersOptions
        from kvtool.engine.config import default_block_size

        chunks = CHUNKS if self.chunk_size is None else tuple(parse_size(item) for item in split_list(self.chunk_size))
        return TiersOptions(
            disk=None if self.no_disk else self.disk,
            device=self.device,
            dtype=self.dtype,
            kv_cache_dtype=self.kv_cache_dtype,
            block_size=default_block_size(self.device) if self.block_size is None else self.block_size,
            chunks=chunks,
            depths=count_list(self.queue_depth, "queue depth"),
            file_bytes=parse_size(self.file_size, "file size"),
            point_s=self.seconds,
            seed=self.seed,
        )
