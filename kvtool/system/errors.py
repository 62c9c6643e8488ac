"""The errors a user can cause, or a device can: one line each, with the exit code of the command line.

KvtoolError          exit 2   wrong use or wrong input
└── DeviceError      exit 3   the device, or a run on it, failed
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

LONGEST_MESSAGE = 300


class KvtoolError(Exception):
    """Wrong input: the message is one line that names the value and what would be right."""

    exit_code = 2


class DeviceError(KvtoolError):
    """The device cannot do it, or a run failed on it."""

    exit_code = 3


def one_line(text: str, limit: int = LONGEST_MESSAGE) -> str:
    """`text` in one line of at most `limit` characters, without any that moves a terminal's cursor or colours it.

    A longer one loses its middle: the value that is wrong stands at its start, what would be right at its end.
    """
    line = visible(" ".join(text.split()))
    half = (limit - 5) // 2
    return line if len(line) <= limit else f"{line[: limit - 5 - half]} ... {line[-half:]}"


def visible(text: str) -> str:
    r"""Control characters other than line ends and tabs written out, as \x1b."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or c.isprintable() or not _controls(c) else repr(c)[1:-1] for c in text)


def _controls(character: str) -> bool:
    """Whether it is of a kind that a terminal obeys, or that turns the direction of text, or is half of a pair."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def did_you_mean(name: str, known: Iterable[str], limit: int = 3) -> str:
    """`": did you mean a, b?"` for the known names nearest to `name`, or an empty string."""
    by_lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=limit, cutoff=0.5)
    return f": did you mean {', '.join(by_lower[n] for n in near)}?" if near else ""
