"""What every measurement shares: progress, and limits of the device taken before and after."""

from __future__ import annotations

from collections.abc import Callable

CEILING_SECONDS = 2.0


Progress = Callable[[str, float], None]
