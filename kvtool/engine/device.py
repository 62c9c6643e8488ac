"""Which device runs, and what goes wrong on it in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kvtool.errors import DeviceError, KvtoolError


@contextmanager
def device_errors(doing: str) -> Iterator[None]:
    """Out of memory and driver errors become a DeviceError that says what was being done."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise DeviceError(f"out of GPU memory while {doing}: {str(error).splitlines()[0]}") from error
    except MemoryError as error:
        raise DeviceError(f"out of memory while {doing}") from error
    except RuntimeError as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "CUDA" in first or "can't allocate memory" in first or "not enough memory" in first:
            raise DeviceError(f"the device failed while {doing}: {first}") from error
        raise


def resolve_device(name: str) -> str:
    """torch's name for `auto` (the first GPU when there is one), `cpu`, `cuda` or `cuda:1`. Raises KvtoolError."""
    wanted = name.strip().lower()
    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if wanted == "cpu":
        return wanted
    match = re.fullmatch(r"cuda(?::(\d+))?", wanted)
    if match is None:
        raise KvtoolError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N")
    index, count = int(match[1] or 0), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        there = f"{count} CUDA device{'s' * (count != 1)}" if count else "no CUDA device"
        raise DeviceError(f"device {name!r} is not here: torch sees {there}; use cpu or auto")
    return f"cuda:{index}"
