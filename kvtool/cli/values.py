"""How the text of options becomes values."""

from __future__ import annotations

import shlex
import sys

import typer

from kvtool.system.errors import KvtoolError
from kvtool.units import parse_length, parse_size, split_list


def given(ctx: typer.Context, *, by_file: bool = False) -> dict[str, str]:
    """The options that were typed, or came `by_file` of defaults: parameter name -> the option, as --tp."""
    known = {"COMMANDLINE", "DEFAULT_MAP"} if by_file else {"COMMANDLINE"}
    sources = {str(parameter.name): ctx.get_parameter_source(str(parameter.name)) for parameter in ctx.command.params}
    return {
        name: f"--{name.replace('_', '-')}"
        for name, source in sources.items()
        if source is not None and source.name in known
    }


def command_line() -> str:
    """The command as it was typed, for a shell."""
    return shlex.join(["kvtool", *sys.argv[1:]])


def length_list(text: str, what: str) -> tuple[int, ...]:
    """Token counts of a comma list: `4k,128k`. Raises KvtoolError."""
    return tuple(parse_length(item, what) for item in split_list(text))


def count_list(text: str, what: str) -> tuple[int, ...]:
    """Whole numbers of a comma list: `1,8,32`. Raises KvtoolError; their range is the callee's to check."""
    return tuple(parse_count(item, what) for item in split_list(text))


def share_list(text: str, what: str) -> tuple[float, ...]:
    """Numbers of a comma list: `0,0.5,0.9`. Raises KvtoolError; their range is the callee's to check."""
    return tuple(_share(item, what) for item in split_list(text))


def parse_count(text: str, what: str) -> int:
    """A whole number. Raises KvtoolError."""
    try:
        return int(text)
    except ValueError:
        raise KvtoolError(f"{what} {text!r} is not a whole number: write a list as 1,8,32") from None


def _share(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise KvtoolError(f"{what} {text!r} is not a number: write a list as 0,0.5,0.9") from None


def optional_length(text: str | None, what: str) -> int | None:
    """Tokens, or None where the option was not given. Raises KvtoolError."""
    return None if text is None else parse_length(text, what)


def optional_lengths(text: str | None, what: str) -> tuple[int, ...] | None:
    """Token counts of a comma list, or None where the option was not given. Raises KvtoolError."""
    return None if text is None else length_list(text, what)


def optional_counts(text: str | None, what: str) -> tuple[int, ...] | None:
    """Whole numbers of a comma list, or None where the option was not given. Raises KvtoolError."""
    return None if text is None else count_list(text, what)


def optional_size(text: str | None, what: str) -> int | None:
    """Bytes, or None where the option was not given. Raises KvtoolError, for nothing at all too."""
    size_bytes = None if text is None else parse_size(text, what)
    if size_bytes == 0:
        raise KvtoolError(f"{what} {text!r} holds nothing: write a size as 256GiB or 1TB")
    return size_bytes
