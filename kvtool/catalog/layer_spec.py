"""A file that spells out the layers of an unknown architecture: one entry of models.yaml, in YAML or JSON.

    num_heads: 32
    hidden_size: 4096
    layers:
    - {count: 24, kind: sliding, kv_heads: 8, k_head_dim: 128, v_head_dim: 128, window: 1024}
    - {count: 8, kind: full, kv_heads: 4, k_head_dim: 192, v_head_dim: 128, indexer: {head_dim: 128, ...}}

`kind` is one of `layer_kinds.CACHES`, `shared` (with source_layer) or `none`, with that kind's fields beside it;
`indexer` and `cross` may be added to any. `layers` may be a pattern as in models.yaml instead. All other fields of an
entry are optional (vocab_size, dtype, moe, params_total, ...).
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from kvtool.catalog.model import Model
from kvtool.catalog.models_yaml import Entry, refuse_unknown_keys
from kvtool.catalog.yaml_file import check_numbers, read_yaml
from kvtool.system.errors import KvtoolError

_MAX_BYTES = 1 << 20
_FORM = (
    "write num_heads: 32, hidden_size: 4096, "
    "layers: [{count: 32, kind: full, kv_heads: 8, k_head_dim: 128, v_head_dim: 128}]"
)


def read_layer_spec(path: Path) -> Model:
    """The model in such a file. Raises KvtoolError naming the key or value that is wrong, and the form for others."""
    raw = _read(path)
    check_numbers(raw, str(path))
    try:
        refuse_unknown_keys(raw, str(path))
        entry = msgspec.convert({"id": path.stem, "source": str(path), "confidence": "given", **raw}, Entry)
        model = entry.model()
    except (msgspec.ValidationError, RecursionError) as error:
        raise KvtoolError(f"{path} is not a layer spec: {error}: {_FORM}") from error
    if not model.layers:
        raise KvtoolError(f"{path} has no layers: {_FORM}")
    return model


def _read(path: Path) -> dict[str, object]:
    raw = read_yaml(path, at_most=_MAX_BYTES, what="layer spec")
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise KvtoolError(f"{path} is not a layer spec: {_FORM}")
    return raw
