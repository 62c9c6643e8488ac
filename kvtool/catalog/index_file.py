"""The index of a sharded safetensors checkpoint: how many bytes its tensors take, without the shards."""

from __future__ import annotations

from pathlib import Path

from kvtool.catalog.hf_config import read_json
from kvtool.errors import KvtoolError

INDEX_NAME = "model.safetensors.index.json"


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
