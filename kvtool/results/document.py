"""What all documents share: their base, JSON without NaN, reading with checks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from kvtool.system.errors import KvtoolError
from kvtool.system.files import read_bytes, refuse_deep


class Struct(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every part of a document."""


LARGEST_INTEGER = (1 << 63) - 1

D = TypeVar("D", bound=Struct)


def encode(document: Struct | dict[str, Any]) -> bytes:
    """Pretty JSON of a document, ending in a newline. Raises ValueError on NaN or Infinity: they never get in."""
    _refuse_non_finite(msgspec.to_builtins(document), "document")
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _refuse_non_finite(value: object, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}: results must be finite")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_non_finite(item, f"{where}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_non_finite(item, f"{where}[{index}]")


def _refuse_huge(value: object, path: Path) -> None:
    """No count of a document is beyond 64 bits; one that is would not even be a float."""
    if isinstance(value, int) and not -LARGEST_INTEGER <= value <= LARGEST_INTEGER:
        raise KvtoolError(f"{path} has an integer of {value.bit_length()} bits: none of a document has more than 63")
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in items:
        _refuse_huge(item, path)


def is_document(path: Path, kind: type[Struct]) -> bool:
    """Whether the file says that it is one of `kind`. Raises KvtoolError where there is no such file."""
    try:
        found = msgspec.json.decode(read_bytes(path))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    expected = next(field.default for field in msgspec.structs.fields(kind) if field.name == "schema")
    return isinstance(found, dict) and found.get("schema") == expected


def read_document(path: Path, kind: type[D]) -> D:
    """A document of `kind` from a file. Raises KvtoolError when it cannot be read or is of another schema."""
    data = read_bytes(path)
    expected = kind.__struct_fields__ and next(f.default for f in msgspec.structs.fields(kind) if f.name == "schema")
    try:
        found = msgspec.json.decode(data)
        schema = found.get("schema") if isinstance(found, dict) else None
        if schema != expected:
            raise KvtoolError(f"{path} is not a {expected} document (its schema is {schema!r})")
        refuse_deep(found, path)
        _refuse_huge(found, path)
        return msgspec.convert(found, kind)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise KvtoolError(f"{path} is not a {expected} document: {error}") from error
