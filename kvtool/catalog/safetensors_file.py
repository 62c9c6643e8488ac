"""The header of one .safetensors file, its tensors and their bytes without reading any; and the index of several."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from kvtool.catalog.headers import TensorHeader
from kvtool.catalog.hf_config import read_json
from kvtool.system.errors import KvtoolError
from kvtool.system.files import reading

INDEX_NAME = "model.safetensors.index.json"
_DTYPE_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


def safetensors_headers(path: Path) -> list[TensorHeader]:
    """The tensors of one file, which fill it exactly. Raises KvtoolError where they do not."""
    from safetensors import SafetensorError, safe_open

    with reading(path):
        size_bytes = path.stat().st_size
        try:
            with safe_open(path, framework="np") as file:
                names = file.keys()
                return [_header(path, name, file.get_slice(name)) for name in names]
        except SafetensorError as error:
            reason = " ".join(str(error).removeprefix("Error while deserializing header: ").split())
            raise KvtoolError(
                f"{path} of {size_bytes:,} bytes is truncated or not a safetensors file: {reason[:200]}"
            ) from error


def _header(path: Path, name: str, tensor: Any) -> TensorHeader:
    dtype, shape = tensor.get_dtype(), tuple(tensor.get_shape())
    if dtype not in _DTYPE_BITS:
        raise KvtoolError(f"{path}: tensor {name!r} has dtype {dtype}, whose size kvtool does not know")
    return TensorHeader(name, dtype, shape, math.prod(shape) * _DTYPE_BITS[dtype] // 8, path)


def indexed_bytes(index: Path) -> int | None:
    """`metadata.total_size`, None where the index does not say. Raises KvtoolError for what is no index."""
    metadata = read_json(index).get("metadata")
    if not isinstance(metadata, dict) or "total_size" not in metadata:
        return None
    total = metadata["total_size"]
    if isinstance(total, float) and total.is_integer():  # some tools write it so
        total = int(total)
    if type(total) is not int or not 0 < total < 1 << 50:
        raise KvtoolError(f"{index}: total_size {str(total)[:30]!r} is not a number of bytes")
    return total
