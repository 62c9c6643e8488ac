"""What a peer implements: it computes what `kvtool.kernels` does, on the same tensors. The modules beside are peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kvtool.bench.kernels.calls import Queries
    from kvtool.bench.kernels.work import KernelWork
    from kvtool.kernels.pages import Pages


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The timed `calls`, one for each of the given queries or for the first of them.

    `output` makes the [T, HQ, DV] of `Kernels` of what a call returned. `note` tells what is not timed, `moved_bytes`
    what a call reads and writes at least where that is more than must be.
    """

    calls: list[Callable[[], Any]]
    output: Callable[[Any], Tensor]
    note: str = ""
    moved_bytes: int | None = None


class Peer(Protocol):
    """One library's kernels for attention over a paged cache."""

    def version(self) -> str | None:
        """Of the library that computes, None where it does not tell."""

    def why_not(self, work: KernelWork, device: torch.device) -> str | None:
        """One line on what keeps this peer from computing `work` there, or None where nothing is known to."""

    def prepare(self, work: KernelWork, layer: Pages, scenes: Sequence[Queries]) -> Prepared:
        """Calls on the pages of `layer`, one a scene. Other layouts and plans are made here, outside the timed calls.

        Raises PeerError, or whatever the library raises.
        """


def load_peer(name: str) -> Peer:
    """The module of this peer. Its library is not imported yet."""
    return cast(Peer, import_module(f"{__package__}.{name.replace('-', '_')}"))
