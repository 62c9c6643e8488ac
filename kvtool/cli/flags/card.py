"""A card and its memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.cli.flags.group import Group
from kvtool.cli.values import optional_size

if TYPE_CHECKING:
    from kvtool.catalog.gpus import Gpu
    from kvtool.results import Calibration

CARD = "A card and its memory"
_option = partial(typer.Option, rich_help_panel=CARD)


@dataclass(frozen=True)
class NamedCard(Group):
    """Which card."""

    gpu: Annotated[str | None, typer.Option(help="The card: a name of `kvtool gpus`, or local.")] = None
    gpu_memory: Annotated[
        str | None, _option(metavar="SIZE", help="What its driver reports, as 24GiB; alone: a card of that memory.")
    ] = None
    free_memory: Annotated[
        str | None, _option(metavar="SIZE", help="What other processes, or the system, leave of it.")
    ] = None

    def found(self) -> Gpu | None:
        """The card's facts; None where none was named. Raises KvtoolError."""
        from kvtool.catalog.gpus import with_memory
        from kvtool.machine.nvml import resolve_gpu

        return with_memory(
            resolve_gpu(self.gpu) if self.gpu else None,
            memory_bytes=optional_size(self.gpu_memory, "gpu memory"),
            free_bytes=optional_size(self.free_memory, "free memory"),
        )


@dataclass(frozen=True)
class Card(NamedCard):
    """A card, and what an engine takes of it."""

    gpu_memory_utilization: Annotated[
        float | None,
        _option(help="Part of the card's memory that may be used (default: vLLM's, 0.92; 0.9 before 0.20)."),
    ] = None
    max_num_batched_tokens: Annotated[
        int | None, _option(help="Tokens that the engine runs in a step (default: vLLM's).")
    ] = None
    max_num_seqs: Annotated[int | None, _option(help="Sequences that the engine runs at a time (default: vLLM's).")] = (
        None
    )


@dataclass(frozen=True)
class MeasuredCard(Card):
    """A card, and what an engine was measured to take of it."""

    calibration: Annotated[
        Path | None,
        _option(metavar="FILE", help="What an engine really took of a GPU, instead of the estimates."),
    ] = None

    def measured(self) -> Calibration | None:
        """What the file says; None without one. Raises KvtoolError."""
        from kvtool.results import read_calibration

        return read_calibration(self.calibration) if self.calibration else None
