"""The errors a user can cause, or a device can: one line each, with the exit code of the command line.

KvtoolError          exit 2   wrong use or wrong input
└── DeviceError      exit 3   the device, or a run on it, failed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KvtoolError(Exception):
    """Wrong input: the message is one line that names the value and what would be right."""

    exit_code = 2


class DeviceError(KvtoolError):
    """The device cannot do it, or a run failed on it."""

    exit_code = 3


def did_you_mean(name: str, known: Iterable[str], limit: int = 3) -> str:
    """`": did you mean a, b?"` for the known names nearest to `name`, or an empty string."""
    by_lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=limit, cutoff=0.5)
    return f": did you mean {', '.join(by_lower[n] for n in near)}?" if near else ""
