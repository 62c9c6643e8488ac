"""Settings of all tests: hypothesis sets no deadline, since how long an example takes says more about the machine."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("kvtool", deadline=None)
settings.load_profile("kvtool")
