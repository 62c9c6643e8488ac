"""The device a run is on: its name resolved, and what goes wrong on it, in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kvtool.system.errors import DeviceError, KvtoolError

if TYPE_CHECKING:
    import torch


@contextmanager
def device_errors(doing: str) -> Iterator[None]:
    """Out of memory and driver errors become a DeviceError that says what was being done."""
    import torch

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


def resolve_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, else the CPU. Raises DeviceError for a device that is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if re.fullmatch(r"cpu|cuda(:\d{1,3})?", name) is None:
        raise KvtoolError(f"device {name!r} is not one of auto, cpu, cuda, cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device {name!r} is not here: torch sees {torch.cuda.device_count()} CUDA devices")
    return torch.device(name)
