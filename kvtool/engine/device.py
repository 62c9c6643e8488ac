"""What goes wrong on a device, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kvtool.errors import DeviceError


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
