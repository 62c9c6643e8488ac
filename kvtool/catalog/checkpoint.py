"""The headers of safetensors checkpoints: which tensors there are and how many bytes, without reading any of them.

A file is 8 bytes of header length (little endian), a JSON header, then the tensors back to back without gaps.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from kvtool.errors import KvtoolError

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_DTYPE_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor: `dtype` as the file names it, `size_bytes` as it stores it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    file: Path

    @property
    def params(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class CheckpointHeader:
    """All tensors of a checkpoint, over all its files."""

    tensors: tuple[TensorHeader, ...]

    @property
    def weights_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def params(self) -> int:
        """Elements stored. In a quantised checkpoint packed weights and scales count as stored too."""
        return sum(tensor.params for tensor in self.tensors)


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a safetensors checkpoint."""
    return any(folder.glob("*.safetensors"))


def read_header(path: Path) -> CheckpointHeader:
    """The header of a .safetensors file, of a folder of them (with its index.json when sharded), or of a .gguf file.

    Raises KvtoolError naming the file that is missing, truncated or contradicts itself.
    """
    if path.is_dir():
        header = _folder_header(path)
        if not header.tensors:
            raise KvtoolError(f"{path} has no tensors in its .safetensors files")
        return header
    if path.suffix == ".gguf":
        from kvtool.catalog.gguf_file import read_gguf_header

        return read_gguf_header(path)
    return CheckpointHeader(tuple(_file_tensors(path)))


def _folder_header(folder: Path) -> CheckpointHeader:
    index = next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)
    if index is not None:
        return _sharded_header(folder, index)
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise KvtoolError(f"{folder} holds no .safetensors file")
    tensors = [tensor for file in files for tensor in _file_tensors(file)]
    seen: dict[str, Path] = {}
    for tensor in tensors:
        if tensor.name in seen:
            raise KvtoolError(f"tensor {tensor.name!r} is in both {seen[tensor.name]} and {tensor.file}")
        seen[tensor.name] = tensor.file
    return CheckpointHeader(tuple(tensors))


def _sharded_header(folder: Path, index: Path) -> CheckpointHeader:
    """The tensors of the index's weight_map, each found in the file it names."""
    content = _json_object(_read(index, 0, index.stat().st_size), index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise KvtoolError(f"{index} has no weight_map of tensor names to files")
    tensors: list[TensorHeader] = []
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file:
            raise KvtoolError(f"{index} names {file!r}, which is not a file beside it")
        wanted = {name for name, place in weight_map.items() if place == file}
        found = [tensor for tensor in _file_tensors(folder / file) if tensor.name in wanted]
        missing = wanted - {tensor.name for tensor in found}
        if missing:
            raise KvtoolError(f"{folder / file} lacks tensor {min(missing)!r}, which {index.name} places there")
        tensors += found
    return CheckpointHeader(tuple(tensors))


def _file_tensors(path: Path) -> list[TensorHeader]:
    """The tensors of one file, checked to fill it exactly."""
    size = _size(path)
    if size < 8:
        raise KvtoolError(f"{path} is truncated: {size} bytes hold no safetensors header")
    header_bytes = int.from_bytes(_read(path, 0, 8), "little")
    if header_bytes > min(size - 8, _MAX_HEADER_BYTES):
        raise KvtoolError(
            f"{path} is truncated or no safetensors file: its header of {header_bytes} bytes is not there"
        )
    header = _json_object(_read(path, 8, header_bytes), path)
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    placed = sorted((_place(path, name, entry) for name, entry in entries.items()), key=lambda item: item[:2])
    end = 0
    for start, stop, tensor in placed:
        if start != end:
            raise KvtoolError(f"{path}: tensor {tensor.name!r} starts at byte {start}, the one before it ends at {end}")
        end = stop
    if end != size - 8 - header_bytes:
        raise KvtoolError(f"{path} is truncated: its tensors take {end} bytes, {size - 8 - header_bytes} are there")
    return [tensor for _, _, tensor in placed]


def _place(path: Path, name: str, entry: object) -> tuple[int, int, TensorHeader]:
    """One entry of the header: where its bytes are, and that they fit its shape and dtype."""
    if not isinstance(entry, dict):
        raise KvtoolError(f"{path}: tensor {name!r} has no description")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    bits = _DTYPE_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise KvtoolError(f"{path}: tensor {name!r} has dtype {str(dtype)[:40]!r}, which safetensors does not have")
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise KvtoolError(f"{path}: tensor {name!r} has no valid shape and data_offsets")
    start, stop = offsets
    if math.prod(shape) * bits != (stop - start) * 8:
        raise KvtoolError(f"{path}: tensor {name!r} of {dtype} {shape} cannot take {stop - start} bytes")
    return start, stop, TensorHeader(name, str(dtype), tuple(shape), stop - start, path)


def _whole_numbers(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 62 for item in value)


def _json_object(data: bytes, path: Path) -> dict[str, object]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise KvtoolError(f"{path} has a header that is not JSON") from error
    if not isinstance(value, dict):
        raise KvtoolError(f"{path} has a header that is not a JSON object")
    return value


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise KvtoolError(f"cannot read {path}: {error.strerror}") from error


def _read(path: Path, offset: int, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(count)
    except OSError as error:
        raise KvtoolError(f"cannot read {path}: {error.strerror}") from error
