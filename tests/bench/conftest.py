"""Runs of this folder measure the device with a small buffer: what it does is not what they are about."""

from __future__ import annotations

import pytest

from kvtool.machine import roofline
from kvtool.units import MIB


@pytest.fixture(autouse=True)
def small_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice a server's last-level cache is read in half a second, before and after each iteration."""
    monkeypatch.setattr(roofline, "stream_buffer_bytes", lambda device, llc_bytes: 16 * MIB)
