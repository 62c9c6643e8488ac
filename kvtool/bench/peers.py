"""Peers by name, and other people's libraries imported with the reason where that fails.

A library is imported only when its peer was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from types import ModuleType
from typing import TYPE_CHECKING

from kvtool.system.errors import KvtoolError, did_you_mean

if TYPE_CHECKING:
    import torch


ALL = "all"
KERNEL_PEERS = (
    *("sdpa", "cudnn", "naive", "gathered", "flex"),
    *("flashinfer", "flashinfer-xqa", "flash-attn", "vllm-triton", "sglang-triton"),
)


class PeerError(Exception):
    """A peer cannot run this work; the message is one line that says why."""


def peer_names(given: Sequence[str], known: Sequence[str] = KERNEL_PEERS) -> tuple[str, ...]:
    """The peers asked for, each once and in the order of `known`; `all` means every one. Raises KvtoolError."""
    for name in given:
        if name != ALL and name not in known:
            raise KvtoolError(f"unknown peer {name!r}{did_you_mean(name, known)} (of {ALL}, {', '.join(known)})")
    return tuple(name for name in known if name in given or ALL in given)


def imported(*modules: str) -> ModuleType:
    """The first of these modules that can be imported. Raises PeerError with the reason where none can.

    A library built for another torch may raise anything at all when it is imported, or exit.
    """
    errors: list[BaseException] = []
    for module in modules:
        try:
            return import_module(module)
        except (Exception, SystemExit) as error:
            errors.append(error)
    # A place that another version of the library has says less than an error of the one that is installed.
    telling = next((error for error in errors if not isinstance(error, ModuleNotFoundError)), errors[0])
    raise PeerError(f"not importable: {one_line(telling)}")


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
