"""Text that any terminal can take: characters that its encoding lacks have a twin that it has."""

from __future__ import annotations

import codecs
import sys

_TWINS = str.maketrans(
    {"█": "#", "▓": "%", "▒": "=", "■": "o", "·": ".", "×": "x", "µ": "u", "─": "-", "━": "-", "│": "|", "…": "..."}
    | {"–": "-", "—": "-", "→": "->", "≥": ">=", "≤": "<=", "±": "+-", "²": "^2", "’": "'", "•": "*"}
)


def use_encodable_output() -> None:
    """Standard output and error print a twin, or a question mark, for what their encoding lacks."""
    codecs.register_error("kvtool.twin", _twin)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="kvtool.twin")


def _twin(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_TWINS)
    return text.encode("ascii", "replace").decode(), error.end
