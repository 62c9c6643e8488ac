"""From what a user typed as MODEL to a Model: a catalogue name, a folder, a .json, a .gguf, or a Hub repository."""

from __future__ import annotations

from pathlib import Path

from kvtool.catalog.attention import attention_name
from kvtool.catalog.hf_config import read_config
from kvtool.catalog.model import FullAttention, Layer, Model
from kvtool.catalog.models_yaml import load_catalogue
from kvtool.errors import KvtoolError


def resolve_model(name: str, *, models_path: Path | None = None) -> Model:
    """The model of that name or path. Raises KvtoolError in one line, with the nearest names for an unknown one."""
    path = Path(name)
    if path.is_dir():
        return read_config(path / "config.json")
    if path.suffix == ".json":
        return read_config(path)
    catalogue = load_catalogue(models_path)
    model = catalogue.find(name)
    if model is None:
        raise KvtoolError(f"unknown model {name!r}{catalogue.nearest(name)}")
    return model


def inline_model(
    *,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    vocab_size: int | None = None,
) -> Model:
    """A plain MHA, GQA or MQA model of that shape. `hidden_size` defaults to heads x head_dim. Raises KvtoolError."""
    limits = {
        "layers": (layers, 4096),
        "heads": (heads, 65536),
        "kv-heads": (kv_heads, 65536),
        "head-dim": (head_dim, 65536),
    }
    for name, (value, high) in limits.items():
        if not 1 <= value <= high:
            raise KvtoolError(f"--{name} {value} must be from 1 to {high}")
    if heads % kv_heads:
        raise KvtoolError(f"--heads {heads} do not divide among --kv-heads {kv_heads}")
    layer = Layer(cache=FullAttention(kv_heads=kv_heads, k_head_dim=head_dim, v_head_dim=head_dim))
    return Model(
        id=f"inline-{layers}x{heads}x{kv_heads}x{head_dim}",
        source="given on the command line",
        architecture=None,
        attention=attention_name([layer], heads),
        layers=(layer,) * layers,
        hidden_size=hidden_size or heads * head_dim,
        vocab_size=vocab_size,
        num_heads=heads,
        intermediate_size=intermediate_size,
        confidence="given",
    )
