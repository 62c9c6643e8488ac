"""What smaller caches are compared on, and what allocators are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from kvtool.cli.flags.group import Group
from kvtool.cli.flags.run import Run
from kvtool.cli.values import count_list, optional_length, optional_lengths
from kvtool.system.errors import KvtoolError
from kvtool.units import split_list

_accuracy = partial(typer.Option, rich_help_panel="Smaller caches (--parts accuracy)")
_pool = partial(typer.Option, rich_help_panel="Allocators (--parts fragmentation)")
REFERENCE, COMPUTED = "bf16", "fp32"


@dataclass(frozen=True)
class SmallerFlags(Group):
    """The text and layers of the accuracy part; the requests of the fragmentation part."""

    text: Annotated[
        Path | None, _accuracy(help="What is read, in UTF-8 (default: five chapters of Alice in Wonderland).")
    ] = None
    kv_cache_dtype_skip_layers: Annotated[
        str | None,
        _accuracy(
            metavar="LIST",
            help="Each format once more with these layers whole, as 0,29 (default: those that lose, with their worst).",
        ),
    ] = None
    cache_type_k: Annotated[str | None, _accuracy(help="Of K alone, beside --cache-type-v: as --kv-cache-dtype.")] = (
        None
    )
    cache_type_v: Annotated[str | None, _accuracy(help="Of V alone, beside --cache-type-k.")] = None
    context: Annotated[
        str | None,
        _accuracy(metavar="LIST", help="Contexts at which a decode step is timed (default: 256,2k,8k on a CPU)."),
    ] = None
    max_model_len: Annotated[str | None, _pool(metavar="TOKENS", help="The longest request (default: 2k).")] = None
    reserve_len: Annotated[
        str | None, _pool(metavar="TOKENS", help="That contiguous reserves a request (default: the longest).")
    ] = None
    placement: Annotated[
        str | None, _pool(help="Of contiguous pieces: first-fit (default) or buddy (blocks of powers of two).")
    ] = None

    def formats(self, run: Run) -> tuple[str, ...] | None:
        """The formats to compare; None for the default ones. Raises KvtoolError for half a pair."""
        if (self.cache_type_k is None) != (self.cache_type_v is None):
            raise KvtoolError("--cache-type-k and --cache-type-v go together: one format for each")
        apart = () if self.cache_type_k is None else (f"{self.cache_type_k}/{self.cache_type_v}",)
        named = () if run.kv_cache_dtype == "auto" else tuple(split_list(run.kv_cache_dtype))
        return (*named, *apart) or None

    def given(self, run: Run) -> dict[str, Any]:
        """The options of both parts. Raises KvtoolError."""
        skipped = self.kv_cache_dtype_skip_layers
        return {
            "text": self.text,
            "contexts": optional_lengths(self.context, "context"),
            "kv_cache_dtypes": self.formats(run),
            "skip_layers": None if skipped is None else count_list(skipped, "layer"),
            "max_model_len": optional_length(self.max_model_len, "max model len"),
            "reserve_len": optional_length(self.reserve_len, "reserve len"),
            "placement": self.placement,
        }

    def run_of(self, run: Run, parts: Sequence[str]) -> Run:
        """How the parts are run: those that compare caches keep one of 16 bits beside, and alone compute in fp32, so
        that no rounding but the cache's is seen. Raises KvtoolError for a list that no part compares."""
        if "accuracy" in parts:
            alone = set(parts) <= {"accuracy", "fragmentation"} and run.dtype == "auto"
            return replace(run, dtype=COMPUTED if alone else run.dtype, kv_cache_dtype=REFERENCE if alone else "auto")
        if self.cache_type_k is not None or self.cache_type_v is not None:
            (own,) = self.formats(replace(run, kv_cache_dtype="auto")) or ("auto",)
            return replace(run, kv_cache_dtype=own)
        if len(formats := split_list(run.kv_cache_dtype)) > 1:
            raise KvtoolError(f"--kv-cache-dtype {','.join(formats)}: only --parts accuracy compares several")
        return run
