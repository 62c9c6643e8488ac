"""Questions about what fits, and where."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.cli.flags.group import Group
from kvtool.cli.values import given, optional_length, optional_size
from kvtool.system.errors import KvtoolError

if TYPE_CHECKING:
    from kvtool.results import BenchDocument
    from kvtool.sizing.questions.lengths import Lengths
    from kvtool.sizing.questions.tiers import Places
    from kvtool.sizing.solve.settings import Question

_option = partial(typer.Option, rich_help_panel="What fits, and where")


@dataclass(frozen=True)
class Questions(Group):
    """Who can be served, by what layout, and which memories could hold the cache."""

    users: Annotated[
        str | None,
        _option(
            metavar="N|max",
            help="What serves N users at a time (or how many: max), by the plans of vLLM and SGLang (or --engine)? "
            "Tries 1 to 16 GPUs without --tp, bf16 and fp8 without --kv-cache-dtype, the longest context without "
            "--context, and where that saves GPUs a larger share of the card, smaller batches, weights in 8 or 4 bits.",
        ),
    ] = None
    lengths: Annotated[
        str | None,
        _option(
            metavar="FILE|MEAN,P95",
            help="How many requests of such lengths fit at once: a .jsonl trace, a list, 4k,12k, or p50=2k,p95=16k.",
        ),
    ] = None
    tiers: Annotated[
        bool,
        _option("--tiers", help="Where the cache could live: registers, L2, HBM, and --dram and --nvme."),
    ] = False
    dram: Annotated[str | None, _option(metavar="SIZE", help="DRAM for the cache, as 256GiB.")] = None
    nvme: Annotated[str | None, _option(metavar="SIZE", help="NVMe for the cache, as 1TB.")] = None
    nvme_gbps: Annotated[float | None, _option(help="What --nvme reads, in GB/s.")] = None
    profile: Annotated[
        Path | None,
        _option(
            metavar="FILE",
            help="Speeds of --dram and --nvme as `kvtool tiers --out` measured them, or what smaller caches cost by "
            "`kvtool bench --parts accuracy --out`.",
        ),
    ] = None

    def places(self) -> Places | None:
        """Where the cache could live; None where no option asks for it. Raises KvtoolError."""
        from kvtool.sizing.questions.tiers import Places

        profile = None if self._of_caches() else self.profile
        if not self.tiers and all(value is None for value in (self.dram, self.nvme, self.nvme_gbps, profile)):
            return None
        nvme_bytes = optional_size(self.nvme, "nvme")
        return Places(
            dram_bytes=optional_size(self.dram, "dram"),
            nvme_bytes=nvme_bytes,
            nvme_gbps=self.nvme_gbps or (None if nvme_bytes is None else self._measured("disk")),
            dram_gbps=self._measured("dram"),
        )

    def _measured(self, tier: str) -> float | None:
        """GB/s up from a tier, by --profile; of host memory only where a GPU was at the other end. Raises KvtoolError
        for a profile without a disk."""
        from kvtool.results import read_profile

        if self.profile is None or self._of_caches():
            return None
        profile = read_profile(self.profile)
        if tier == "disk" and tier not in profile.up_gbps:
            raise KvtoolError(f"{self.profile} has no disk, only {', '.join(profile.up_gbps)}: give --nvme-gbps")
        return profile.up_gbps.get(tier) if tier == "disk" or profile.of_a_gpu else None

    def _of_caches(self) -> bool:
        """Whether --profile is a bench document."""
        from kvtool.results import BenchDocument, is_document

        return self.profile is not None and is_document(self.profile, BenchDocument)

    def measured_caches(self) -> BenchDocument | None:
        """What --profile says of cache formats; None where it is of something else. Raises KvtoolError."""
        from kvtool.results import BenchDocument, read_document

        if self.profile is None or not self._of_caches():
            return None
        return read_document(self.profile, BenchDocument)

    def parsed_lengths(self) -> Lengths | None:
        """The lengths of requests; None where they were not given. Raises KvtoolError."""
        from kvtool.workloads.lengths import parse_lengths

        return None if self.lengths is None else parse_lengths(self.lengths)

    def question(self, ctx: typer.Context, *, context: str | None, loads: str | None) -> Question | None:
        """What --users asks, and what the other options leave open; None without it. Raises KvtoolError."""
        from kvtool.sizing.solve.settings import Question

        if self.users is None:
            return None
        typed = given(ctx)
        if "batch_size" in typed:
            raise KvtoolError("--users and --batch-size do not go together: --users is the batch size")
        if "lengths" in typed:
            raise KvtoolError("--users and --lengths do not go together: --lengths asks another question")
        if context is not None and "," in context:
            raise KvtoolError(f"--users asks about one context, not {context!r}")
        fixed = given(ctx, by_file=True)
        return Question(
            users=None if self.users == "max" else _users(self.users),
            context=optional_length(context, "context"),
            open_gpus="tp" not in fixed,
            open_pp="pp" not in fixed,
            open_dtype="kv_cache_dtype" not in fixed,
            loads=loads,
            open_weights="weight_dtype" not in typed and "calibration" not in typed,
            open_start="calibration" not in typed,
        )


def loaded_as(model: str | None, model_id: str) -> str | None:
    """What an engine can load: a folder as it was typed, or the id on the Hub; a shape or a lone file is neither."""
    if model is None or Path(model).suffix in (".json", ".gguf"):
        return None
    return model if Path(model).is_dir() else model_id


def _users(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise KvtoolError(f"users {text!r} is not a whole number or max") from None
