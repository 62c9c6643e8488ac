"""Settings of all tests: hypothesis sets no deadline, since how long an example takes says more about the machine."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Iterator

import pytest

try:
    from hypothesis import settings
except ImportError:  # a lent machine: tests that draw examples fail there, all others run
    settings = None

# Processes of the suite run side by side: none of them binds its threads to the same first cores.
os.environ.setdefault("OMP_PROC_BIND", "false")

# A shell that starts the suite in the background has it ignore Ctrl-C, and children would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What was imported and collected stays until the end: no later garbage collection walks through it again."""
    gc.collect()
    gc.freeze()


# The same examples on every machine, so that a change is judged by what it changed; `make fuzz` draws new ones.
if settings is not None:
    settings.register_profile("kvtool", deadline=None, derandomize=True)
    settings.register_profile("random", deadline=None, derandomize=False, print_blob=True)
    settings.load_profile("kvtool")


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with no gcc, where torch's own operations must do what the compiled kernels do elsewhere."""
    from kvtool.kernels.cpu.native import library, native

    monkeypatch.setattr(shutil, "which", lambda name: None)
    for found in (library, native):
        found.cache_clear()
    yield
    for found in (library, native):
        found.cache_clear()
