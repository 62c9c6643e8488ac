"""What all documents share: their base, JSON without NaN, reading with checks, writing without half-written files."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from kvtool.errors import KvtoolError


class Struct(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every part of a document."""


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


def read_document(path: Path, kind: type[D]) -> D:
    """A document of `kind` from a file. Raises KvtoolError when it cannot be read or is of another schema."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise KvtoolError(f"cannot read {path}: {error.strerror}") from error
    expected = kind.__struct_fields__ and next(f.default for f in msgspec.structs.fields(kind) if f.name == "schema")
    try:
        found = msgspec.json.decode(data)
        schema = found.get("schema") if isinstance(found, dict) else None
        if schema != expected:
            raise KvtoolError(f"{path} is not a {expected} document (its schema is {schema!r})")
        return msgspec.convert(found, kind)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise KvtoolError(f"{path} is not a {expected} document: {error}") from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write through a temporary file and a rename, so that no half-written file is ever left. Raises KvtoolError."""
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise KvtoolError(f"cannot write {path}: {error.strerror}") from error
