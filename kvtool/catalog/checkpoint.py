"""The headers of a checkpoint: a .safetensors or .gguf file, or a folder of safetensors with its index when sharded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from kvtool.catalog.gguf.file import read_gguf
from kvtool.catalog.headers import CheckpointHeader, TensorHeader
from kvtool.catalog.safetensors_file import safetensors_headers
from kvtool.system.errors import KvtoolError
from kvtool.system.files import read_bytes


def holds_weights(path: Path) -> bool:
    """Whether there are weights that can be run: a .gguf file, or a folder with safetensors."""
    return (path.is_file() and path.suffix == ".gguf") or (path.is_dir() and any(path.glob("*.safetensors")))


def lone_gguf(name: str) -> str:
    """The one .gguf file of a folder that has neither a config.json nor safetensors; any other name as it is."""
    path = Path(name)
    try:
        if not name or not path.is_dir() or (path / "config.json").exists() or any(path.glob("*.safetensors")):
            return name
        files = sorted(path.glob("*.gguf"))
    except (OSError, ValueError):  # a name too long for a file, or with a null byte
        return name
    if len(files) > 1:
        raise KvtoolError(f"{name} has {len(files)} .gguf files: name one, as {files[0]}")
    return str(files[0]) if files else name


def find_checkpoint(name: str) -> CheckpointHeader | None:
    """The headers of the weights in the folder or file MODEL; None where it has none. Raises KvtoolError."""
    path = Path(lone_gguf(name))
    return read_header(path) if path.suffix in (".gguf", ".safetensors") or holds_weights(path) else None


def read_header(path: Path) -> CheckpointHeader:
    """The header of a file, or of all files of a folder.

    Raises KvtoolError naming the file that is missing, truncated or contradicts itself.
    """
    tensors = tuple(_tensors(path))
    if not tensors:
        raise KvtoolError(f"{path} has no tensors: it says nothing of the weights")
    return CheckpointHeader(tensors)


def _tensors(path: Path) -> Sequence[TensorHeader]:
    if path.suffix == ".gguf" and not path.is_dir():
        return read_gguf(path).tensors
    if not path.is_dir():
        return safetensors_headers(path)
    index = next(iter(sorted(path.glob("*.safetensors.index.json"))), None)
    return _folder_tensors(path) if index is None else _sharded_tensors(path, index)


def _folder_tensors(folder: Path) -> list[TensorHeader]:
    """Those of model.safetensors, else of all files, which must not repeat one."""
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise KvtoolError(f"{folder} holds no .safetensors file")
    tensors = [tensor for file in files for tensor in safetensors_headers(file)]
    seen: dict[str, Path] = {}
    for tensor in tensors:
        if tensor.name in seen:
            raise KvtoolError(f"tensor {tensor.name!r} is in both {seen[tensor.name]} and {tensor.file}")
        seen[tensor.name] = tensor.file
    return tensors


def _sharded_tensors(folder: Path, index: Path) -> list[TensorHeader]:
    """The tensors of the index's weight_map, each found in the file it names."""
    weight_map = _weight_map(index)
    tensors: list[TensorHeader] = []
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file or "\0" in file:
            raise KvtoolError(f"{index} names {file!r}, which is not a file beside it")
        wanted = {name for name, place in weight_map.items() if place == file}
        found = [tensor for tensor in safetensors_headers(folder / file) if tensor.name in wanted]
        missing = wanted - {tensor.name for tensor in found}
        if missing:
            raise KvtoolError(f"{folder / file} lacks tensor {min(missing)!r}, which {index.name} places there")
        tensors += found
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor names to file names."""
    try:
        content = json.loads(read_bytes(index))
    except (ValueError, RecursionError) as error:
        raise KvtoolError(f"{index} is not JSON") from error
    found = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise KvtoolError(f"{index} has no weight_map of tensor names to files")
    return found
