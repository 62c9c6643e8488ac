"""The metadata and the tensor list of a .gguf file, read without its weights and checked against the file's size.

Layout (little endian): magic, version, counts, key-value pairs, tensor descriptions, padding, tensor data.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvtool.catalog.headers import TensorHeader
from kvtool.system.errors import KvtoolError
from kvtool.system.files import reading

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MAX_ITEMS = 1 << 24


@dataclass(frozen=True, slots=True)
class GgufFile:
    """`metadata` by key; an array of strings is kept as its length, because vocabularies are large and only counted."""

    path: Path
    metadata: dict[str, Any]
    tensors: tuple[TensorHeader, ...]


def read_gguf(path: Path) -> GgufFile:
    """The metadata and tensors of a file. Raises KvtoolError when it is not GGUF, truncated or of an unknown type."""
    try:
        with reading(path), path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data).file()
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise KvtoolError(f"{path} is truncated or not a GGUF file") from error
    except ValueError as error:
        raise KvtoolError(f"{path} is empty") from error


class _Reader:
    """A cursor over the file's bytes."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.at = 0

    def file(self) -> GgufFile:
        if self.data[:4] != b"GGUF":
            raise KvtoolError(f"{self.path} is not a GGUF file")
        self.at = 4
        version = self.scalar("I")
        if version not in _VERSIONS:
            raise KvtoolError(f"{self.path} is GGUF version {version}: this kvtool reads 2 and 3")
        tensor_count, pair_count = self.count(), self.count()
        metadata = {self.string(): self.value(self.scalar("I")) for _ in range(pair_count)}
        described = [self._description() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1:
            raise KvtoolError(f"{self.path} has alignment {alignment!r}")
        data_bytes = len(self.data) - -(-self.at // alignment) * alignment
        tensors = tuple(self._tensor(*item, data_bytes) for item in described)
        return GgufFile(self.path, metadata, tensors)

    def scalar(self, code: str) -> Any:
        value = struct.unpack_from("<" + code, self.data, self.at)[0]
        self.at += struct.calcsize("<" + code)
        return value

    def count(self) -> int:
        value: int = self.scalar("Q")
        if value > min(_MAX_ITEMS, len(self.data)):
            raise KvtoolError(f"{self.path} is truncated or corrupt: it counts {value} items")
        return value

    def string(self) -> str:
        end = self._string_end()
        text = self.data[self.at : end].decode()
        self.at = end
        return text

    def _string_end(self) -> int:
        """Where the string here ends; the cursor stays at its first byte."""
        length: int = self.scalar("Q")
        if self.at + length > len(self.data):
            raise KvtoolError(f"{self.path} is truncated: a string of {length} bytes is not there")
        return self.at + length

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise KvtoolError(f"{self.path} has a value of type {kind}, which GGUF does not have")
        return self.scalar(_SCALARS[kind])

    def _array(self) -> Any:
        kind, length = self.scalar("I"), self.count()
        if kind == _STRING:
            for _ in range(length):
                self.at = self._string_end()
            return length
        if kind not in _SCALARS:
            raise KvtoolError(f"{self.path} has an array of type {kind}, which is not known")
        code = f"<{length}{_SCALARS[kind]}"
        values = struct.unpack_from(code, self.data, self.at)
        self.at += struct.calcsize(code)
        return list(values)

    def _description(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape (GGUF writes the innermost dimension first), type number and offset into the data."""
        name = self.string()
        dimensions = self.scalar("I")
        if dimensions > 8:
            raise KvtoolError(f"{self.path}: tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self.scalar("Q") for _ in range(dimensions))[::-1]
        return name, shape, self.scalar("I"), self.scalar("Q")

    def _tensor(self, name: str, shape: tuple[int, ...], kind: int, offset: int, data_bytes: int) -> TensorHeader:
        dtype, block_items, block_bytes = _ggml_type(self.path, name, kind)
        items = math.prod(shape)
        if items % block_items:
            raise KvtoolError(f"{self.path}: tensor {name!r} of {items} items does not fill blocks of {block_items}")
        size_bytes = items // block_items * block_bytes
        if offset + size_bytes > data_bytes:
            raise KvtoolError(f"{self.path} is truncated: tensor {name!r} ends beyond the end of the file")
        return TensorHeader(name, dtype, shape, size_bytes, self.path)


def _ggml_type(path: Path, name: str, kind: int) -> tuple[str, int, int]:
    """A tensor type's name, and the items and bytes of one of its blocks."""
    try:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError as error:
        raise KvtoolError("reading .gguf files needs the gguf package: pip install 'kvtool[gguf]'") from error
    known = {member.value: member for member in GGMLQuantizationType}
    if kind not in known:
        raise KvtoolError(f"{path}: tensor {name!r} has type {kind}, which GGUF does not have")
    items, size = GGML_QUANT_SIZES[known[kind]]
    return known[kind].name, items, size
