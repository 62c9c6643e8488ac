"""The `layers` line of models.yaml: `10 (5 sliding, full), 2 sliding` -> one name a layer."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kvtool.system.errors import KvtoolError

_TOKEN = re.compile(r"\s*(\d+|[a-z][a-z0-9_+]*|[(),])")
_MAX_LAYERS = 4096


def expand_pattern(pattern: str) -> list[str]:
    """The names in order, counts and groups written out. Raises KvtoolError for anything else, or over 4096 layers."""
    tokens = list(_tokens(pattern))
    names, end = _sequence(tokens, 0, pattern)
    if end != len(tokens):
        raise _wrong(pattern)
    return names


def _tokens(pattern: str) -> Iterator[str]:
    position, text = 0, pattern.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _wrong(pattern)
        yield match[1]
        position = match.end()


def _sequence(tokens: list[str], at: int, pattern: str) -> tuple[list[str], int]:
    """Items separated by commas from `tokens[at]` on: their names, and where they end."""
    names: list[str] = []
    while True:
        item, at = _item(tokens, at, pattern)
        names += item
        if len(names) > _MAX_LAYERS:
            raise KvtoolError(f"layers {pattern!r} has more than {_MAX_LAYERS} layers")
        if at == len(tokens) or tokens[at] != ",":
            return names, at
        at += 1


def _item(tokens: list[str], at: int, pattern: str) -> tuple[list[str], int]:
    """`name`, `3 name` or `3 (name, ...)`."""
    tokens_left = [*tokens[at : at + 2], "", ""]
    count = 1
    if tokens_left[0].isdigit():
        count, at = int(tokens_left.pop(0)), at + 1
    if not 1 <= count <= _MAX_LAYERS:
        raise _wrong(pattern)
    if tokens_left[0] == "(":
        names, end = _sequence(tokens, at + 1, pattern)
        if tokens[end : end + 1] != [")"]:
            raise _wrong(pattern)
        return names * count, end + 1
    if not tokens_left[0][:1].isalpha():
        raise _wrong(pattern)
    return [tokens_left[0]] * count, at + 1


def _wrong(pattern: str) -> KvtoolError:
    return KvtoolError(
        f"layers {pattern!r} is not a layer pattern: write `32 full` or `10 (5 sliding, full), 2 sliding`"
    )
