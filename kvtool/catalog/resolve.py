"""From what a user typed as MODEL to a Model: a catalogue name, a folder, a .json, a .gguf, or a Hub repository."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kvtool.catalog.attention import attention_name
from kvtool.catalog.checkpoint import lone_gguf
from kvtool.catalog.model import FullAttention, Layer, Model
from kvtool.catalog.models_yaml import Catalogue, load_catalogue
from kvtool.system.errors import KvtoolError

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")  # owner/name on the Hugging Face Hub


def resolve_model(name: str, *, models_path: Path | None = None, family: str | None = None) -> Model:
    """The model of that name or path. `family` (--as) reads a config as one of that architecture.

    Raises KvtoolError in one line, with the nearest names for an unknown one.
    """
    return _read_as(name, family) if family is not None else _resolve(name, load_catalogue(models_path))


def _resolve(name: str, catalogue: Catalogue) -> Model:
    model = catalogue.find(name)
    if model is not None:
        return model
    name = lone_gguf(name)
    path = Path(name)
    if path.suffix == ".json":
        return _read_config(path)
    if path.suffix == ".gguf":
        from kvtool.catalog.gguf.model import gguf_model

        return gguf_model(path)
    if name and _is_folder(path):
        return _folder_model(path)
    if path.is_absolute() or name.startswith("."):
        raise KvtoolError(f"{name} is neither a folder with config.json, nor a .json or .gguf file")
    variant = catalogue.find_variant(name)
    if _REPOSITORY.fullmatch(name):
        return _repository_model(name, variant, catalogue.nearest(name))
    if variant is not None:
        return variant
    nearest = catalogue.nearest(name) or ": `kvtool models` lists them; a path or an owner/name on the Hub works too"
    raise KvtoolError(f"unknown model {name[:80]!r}{nearest}")


def resolve_models(names: Sequence[str], *, models_path: Path | None = None, family: str | None = None) -> list[Model]:
    """The models of those names; `family` (--as) reads the configs among them that are not known otherwise.

    Raises KvtoolError as `resolve_model`, and where every one of them is known without `family`.
    """
    found: list[Model] = []
    unknown = 0
    catalogue = load_catalogue(models_path)
    for name in names:
        try:
            found.append(_resolve(name, catalogue))
        except KvtoolError:
            if family is None:
                raise
            found.append(_read_as(name, family))
            unknown += 1
    if family is not None and not unknown:
        raise KvtoolError(f"--as {family} is for a config that kvtool does not know: it knows {' and '.join(names)}")
    return found


def _read_config(path: Path, family: str | None = None) -> Model:
    """A config.json, for which every family of them is imported."""
    from kvtool.catalog.hf_config import read_config

    return read_config(path, family=family)


def _read_as(name: str, family: str) -> Model:
    """The config of a folder, file or repository, read as that architecture. Raises KvtoolError."""
    path = Path(name)
    if path.suffix == ".json":
        return _read_config(path, family)
    if name and _is_folder(path):
        return _read_config(path / "config.json", family)
    if _REPOSITORY.fullmatch(name):
        from kvtool.catalog.hub import hub_model

        return hub_model(name, family=family)
    raise KvtoolError(f"--as {family} reads a config.json: give its file, its folder or its repository, not {name!r}")


def _repository_model(name: str, variant: Model | None, nearest: str) -> Model:
    """What the Hub says of a repository; where it cannot be read, the variant that its name tells of."""
    from kvtool.catalog.hub import UnreadError, hub_model

    try:
        return hub_model(name)
    except UnreadError as error:
        if variant is not None:
            return variant
        raise KvtoolError(f"{error}{nearest}") from error


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name too long for a file, or with a null byte
        return False


def _folder_model(folder: Path) -> Model:
    """config.json of a folder, with its parameters counted where there are weights and they are not packed, or their
    bytes where there is an index alone.
    """
    from kvtool.catalog.checkpoint import holds_weights, read_header
    from kvtool.catalog.safetensors_file import INDEX_NAME, indexed_bytes

    model = _read_config(folder / "config.json")
    index = folder / INDEX_NAME
    if not holds_weights(folder):
        return replace(model, weights_bytes=indexed_bytes(index)) if index.is_file() else model
    if model.quantisation is not None:
        return model
    return replace(model, params_total=read_header(folder).params, params_source="headers of its safetensors files")


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
