"""What the launchers ask of a device: its size, counters for programs that meet, memory for TMA descriptors."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace

import torch
import triton
from torch import Tensor

from kvtool.kernels.triton.tiles.rules import Target, Tiles
from kvtool.kernels.triton.tiles.tuned import tiles_of

MAX_ARRIVALS = 1024  # more than the sequences x KV heads that are ever split: they and their splits are all resident
EARLY_CAPABILITY = 90  # of cards that launch programs ahead of time
GRAPHS = -1  # in the place of a stream


_on_trial: ContextVar[Tiles | None] = ContextVar("tiles on trial", default=None)
_in_turn: ContextVar[bool] = ContextVar("launches wait for each other", default=False)


@contextmanager
def trying(tiles: Tiles) -> Iterator[None]:
    """Launches inside take these tiles, and the rules' where there is none, whatever was timed on the card before."""
    token = _on_trial.set(tiles)
    try:
        yield
    finally:
        _on_trial.reset(token)


@contextmanager
def in_turn() -> Iterator[None]:
    """No launch inside starts before the one in front of it is over, whatever the card can."""
    token = _in_turn.set(True)
    try:
        yield
    finally:
        _in_turn.reset(token)


def target(device: torch.device) -> Target:
    """The GPU with the tiles that were timed on it, or those on trial."""
    known, tiles = _target(device), _on_trial.get()
    return known if tiles is None else replace(known, tuned=tiles)


@functools.cache
def _target(device: torch.device) -> Target:
    """The GPU; for the interpreter a device of a few multiprocessors, so that there are splits."""
    if device.type != "cuda":
        return Target(capability=90, multiprocessors=4, shared_bytes=227 * 1024)
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index)
    major, minor = torch.cuda.get_device_capability(device)
    return Target(
        10 * major + minor,
        properties["multiprocessor_count"],
        properties["max_shared_mem"],
        tiles_of(torch.cuda.get_device_name(device), triton.__version__),
    )


def launched(device: torch.device) -> dict[str, object]:
    """How the kernels of a step are launched: before the launch in front of them is over, where the card can."""
    if device.type == "cpu" or _in_turn.get() or target(device).capability < EARLY_CAPABILITY:
        return {"PDL": False}
    return {"PDL": True, "launch_pdl": True}


def arrivals(device: torch.device, count: int) -> Tensor:
    """At least [count] int32 zeros for the programs of a launch to count in, which leave them zero, for the next one.

    Each stream has its own, and all graphs of a device share one, as they share memory: they are replayed in turn.
    """
    if device.type != "cuda" or count > MAX_ARRIVALS:
        return torch.zeros(count, dtype=torch.int32, device=device)
    of_graphs = _kept_arrivals(device, GRAPHS)  # made by the call that compiles, before any capture
    if torch.cuda.is_current_stream_capturing():
        return of_graphs
    return _kept_arrivals(device, torch.cuda.current_stream(device).cuda_stream)


@functools.cache
def _kept_arrivals(device: torch.device, stream: int) -> Tensor:
    return torch.zeros(MAX_ARRIVALS, dtype=torch.int32, device=device)


def descriptor_memory(size: int, alignment: int, stream: int | None) -> Tensor:
    """Where a launch's programs build their TMA descriptors."""
    return torch.empty(size, dtype=torch.int8, device="cuda")
