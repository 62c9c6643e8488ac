"""Other people's attention kernels on our pages: each peer computes what `kvtool.kernels` does, on the same tensors.

A module here is a peer and implements `Peer`. Its library is imported only when the peer was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast

from kvtool.errors import KvtoolError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kvtool.bench.kernel_calls import Queries
    from kvtool.bench.kernel_work import KernelWork
    from kvtool.engine.pool import LayerCache

ALL = "all"
KERNEL_PEERS = ("sdpa", "flex", "flashinfer", "flash-attn", "vllm-triton", "sglang-triton")


class PeerError(Exception):
    """A peer cannot run this work; the message is one line that says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The timed `calls`, one for each of the given queries or for the first of them.

    `output` makes the [T, HQ, DV] of `Kernels` of what a call returned. `note` tells what is not timed.
    """

    calls: list[Callable[[], Any]]
    output: Callable[[Any], Tensor]
    note: str = ""


class Peer(Protocol):
    """One library's kernels for attention over a paged cache."""

    def version(self) -> str | None:
        """Of the library that computes, None where it does not tell."""

    def why_not(self, work: KernelWork, device: torch.device) -> str | None:
        """One line on what keeps this peer from computing `work` there, or None where nothing is known to."""

    def prepare(self, work: KernelWork, layer: LayerCache, scenes: Sequence[Queries]) -> Prepared:
        """Calls on the pages of `layer`, one a scene. Other layouts and plans are made here, outside the timed calls.

        Raises PeerError, or whatever the library raises.
        """


def peer_names(given: Sequence[str], known: Sequence[str] = KERNEL_PEERS) -> tuple[str, ...]:
    """The peers asked for, each once and in the order of `known`; `all` means every one. Raises KvtoolError."""
    for name in given:
        if name != ALL and name not in known:
            raise KvtoolError(f"unknown peer {name!r}{did_you_mean(name, known)} (of {ALL}, {', '.join(known)})")
    return tuple(name for name in known if name in given or ALL in given)


def load_peer(name: str) -> Peer:
    """The module of this peer. Its library is not imported yet."""
    return cast(Peer, import_module(f"{__name__}.{name.replace('-', '_')}"))


def imported(*modules: str) -> ModuleType:
    """The first of these modules that can be imported. Raises PeerError with what the last one died of.

    A library built for another torch may raise anything at all when it is imported, or exit.
    """
    reason = ""
    for module in modules:
        try:
            return import_module(module)
        except (Exception, SystemExit) as error:
            reason = one_line(error)
    raise PeerError(f"not importable: {reason}")


def why_not_here(device: torch.device, *modules: str) -> str | None:
    """Why the first of these modules cannot be imported, or else cannot run on `device`: all of them are for GPUs."""
    return why_not_imported(*modules) or (None if device.type == "cuda" else "needs a GPU")


def why_not_imported(*modules: str) -> str | None:
    """`imported`'s reason, or None."""
    try:
        imported(*modules)
    except PeerError as refusal:
        return str(refusal)
    return None


def distribution_version(*names: str) -> str | None:
    """Of the first of these distributions that is installed."""
    for name in names:
        try:
            return installed_version(name)
        except PackageNotFoundError:
            continue
    return None


def one_line(error: BaseException, limit: int = 160) -> str:
    """What an exception says, on one line that a table's note can hold."""
    said = " ".join(str(error).split()) or type(error).__name__
    named = said if isinstance(error, PeerError | ImportError) else f"{type(error).__name__}: {said}"
    return named if len(named) <= limit else f"{named[: limit - 3]}..."
