"""models.yaml: the models kvtool knows, typed, looked up by id, alias or the last part of either, in any case."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path

import msgspec
import yaml

from kvtool.catalog.attention import attention_name
from kvtool.catalog.decoder import Decoder, RopeScaling, Router
from kvtool.catalog.hf_decoder import default_decoder
from kvtool.catalog.layer_kinds import CACHES, written_layers
from kvtool.catalog.layer_pattern import expand_pattern
from kvtool.catalog.model import (
    CacheKind,
    ChunkedAttention,
    CompressedAttention,
    CrossAttention,
    FullAttention,
    GatedDeltaNet,
    Indexer,
    KimiDeltaAttention,
    LatentAttention,
    Layer,
    LightningAttention,
    Mamba1,
    Mamba2,
    Model,
    Moe,
    OtherState,
    Quantisation,
    SharedAttention,
    ShortConvolution,
    SlidingAttention,
)
from kvtool.catalog.names import Bases, as_variant, index_bases, take_apart
from kvtool.catalog.yaml_file import check_numbers, own_models_path, read_yaml
from kvtool.system.errors import KvtoolError, did_you_mean

_SCHEMA = "kvtool.models/1"
_ENTRY = re.compile(r"^- id: ", re.MULTILINE)
_ALIASES = re.compile(r".*\n  aliases: \[(.*)\]$", re.MULTILINE)
_CHECKPOINT = re.compile(r"^  - \{id: ([^,]+),", re.MULTILINE)
_BLOCKS = {
    **CACHES,
    "indexer": Indexer,
    "moe": Moe,
    "quantisation": Quantisation,
    "rope_scaling": RopeScaling,
    "router": Router,
}


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A block of the file: an unknown key is an error, not a silent loss."""


class _DecoderFacts(_Strict, frozen=True, kw_only=True):
    """What a published config gives; every field left out takes the family's default."""

    norm_eps: float | None = None
    rope_theta: float | None = None
    rope_scaling: RopeScaling | None = None
    rope_interleaved: bool | None = None
    router: Router | None = None


class Checkpoint(_Strict, frozen=True, kw_only=True):
    """A repository that stores the same layers in another way, or is made for another length."""

    id: str
    quantisation: Quantisation | None = None
    max_position_embeddings: int | None = None
    source: str

    def of(self, model: Model) -> Model:
        longest = self.max_position_embeddings or model.max_position_embeddings
        stored = self.quantisation or model.quantisation
        return replace(model, id=self.id, quantisation=stored, max_position_embeddings=longest, source=self.source)


class Entry(_Strict, frozen=True, kw_only=True):
    """One model as the file has it."""

    id: str
    layers: str | list[dict[str, object]]
    draft_layers: str | None = None
    num_heads: int
    hidden_size: int
    source: str
    confidence: str
    aliases: list[str] = []
    architecture: str | None = None
    full: FullAttention | None = None
    sliding: SlidingAttention | None = None
    chunked: ChunkedAttention | None = None
    cross: CrossAttention | None = None
    mla: LatentAttention | None = None
    compressed: CompressedAttention | None = None
    indexer: Indexer | None = None
    mamba1: Mamba1 | None = None
    mamba2: Mamba2 | None = None
    gated_delta_net: GatedDeltaNet | None = None
    kda: KimiDeltaAttention | None = None
    lightning: LightningAttention | None = None
    short_conv: ShortConvolution | None = None
    state: OtherState | None = None
    intermediate_size: int | None = None
    vocab_size: int | None = None
    moe: Moe | None = None
    tie_word_embeddings: bool | None = None
    max_position_embeddings: int | None = None
    dtype: str | None = None
    recurrent_state_dtype: str | None = None
    decoder: _DecoderFacts = _DecoderFacts()
    quantisation: Quantisation | None = None
    quantisation_source: str | None = None
    checkpoints: list[Checkpoint] = []
    params_total: int | None = None
    params_source: str | None = None
    notes: str | None = None

    def ids(self) -> list[str]:
        """Its id, its aliases and its checkpoints, as the file has them."""
        return [self.id, *self.aliases, *(checkpoint.id for checkpoint in self.checkpoints)]

    def names(self) -> Iterator[str]:
        """Every name it answers to, lower-cased: id, aliases, checkpoints, and the last part of each."""
        for name in self.ids():
            yield name.lower()
            yield name.rsplit("/", 1)[-1].lower()

    def model(self) -> Model:
        layers = self._layers()
        drafts = expand_pattern(self.draft_layers) if self.draft_layers else []
        return Model(
            id=self.id,
            source=self.source,
            architecture=self.architecture,
            attention=attention_name(layers, self.num_heads),
            layers=tuple(layers),
            hidden_size=self.hidden_size,
            vocab_size=self.vocab_size,
            num_heads=self.num_heads,
            intermediate_size=self.intermediate_size,
            draft_layers=tuple(self._layer(name, layers) for name in drafts),
            moe=self.moe,
            tie_word_embeddings=self.tie_word_embeddings,
            max_position_embeddings=self.max_position_embeddings,
            dtype=self.dtype,
            recurrent_state_dtype=self.recurrent_state_dtype,
            decoder=self._decoder(),
            quantisation=self.quantisation,
            params_total=self.params_total,
            params_source=self.params_source,
            confidence=self.confidence,
            notes=self.notes,
        )

    def named(self, name: str) -> Model:
        """The model, or its checkpoint of that name (or last part of one), in lower case."""
        for one in self.checkpoints:
            if name in (one.id.lower(), one.id.rsplit("/", 1)[-1].lower()):
                return one.of(self.model())
        return self.model()

    def held_by(self, name: str) -> Model:
        """What a variant of that name begins from: a checkpoint of another length that it holds, or Ollama's tag is."""
        tag = ":" in name and "/" not in name and "base" not in name
        for one in self.checkpoints:
            own = one.id.rsplit("/", 1)[-1].lower()
            if one.quantisation is None and (own in name.lower() or (tag and own.endswith("-instruct"))):
                return replace(one.of(self.model()), id=self.id, source=self.source)
        return self.model()

    def _layers(self) -> list[Layer]:
        layers: list[Layer] = []
        if not isinstance(self.layers, str):
            return written_layers(self.layers, self.num_heads)
        made: dict[str, Layer] = {}  # alike layers are one object, but for those that share what an earlier one keeps
        for name in expand_pattern(self.layers):
            layers.append(made.get(name) or self._layer(name, layers))
            if not isinstance(layers[-1].cache, SharedAttention):
                made[name] = layers[-1]
        return layers

    def _layer(self, name: str, before: list[Layer]) -> Layer:
        kind, *extras = name.split("+")
        missing = [extra for extra in extras if extra not in ("indexer", "cross") or getattr(self, extra) is None]
        if missing:
            raise KvtoolError(f"model {self.id}: layer {name!r} needs an {missing[0][:40]!r} block (indexer or cross)")
        layer = Layer(
            cache=self._cache(name, kind, before),
            indexer=self.indexer if "indexer" in extras else None,
            cross=self.cross if "cross" in extras else None,
        )
        if layer.indexer is not None and isinstance(layer.cache, CompressedAttention):
            return replace(layer, indexer=replace(layer.indexer, ratio=layer.cache.ratio or 1))
        return layer

    def _cache(self, name: str, kind: str, before: list[Layer]) -> CacheKind | None:
        """The block of that name; `shared_NAME` shares an earlier layer's, `compressed_4` has its ratio in the name."""
        if kind == "none":
            return None
        ratio = kind.removeprefix("compressed_")
        if self.compressed is not None and kind != ratio and ratio.isdecimal() and len(ratio) < 8:
            return replace(self.compressed, ratio=int(ratio))
        own = kind.removeprefix("shared_")
        cache: CacheKind | None = getattr(self, own) if own in CACHES else None
        if cache is None:
            raise KvtoolError(f"model {self.id}: layer {name!r} has no block of that name")
        if own == kind:
            return cache
        same = [index for index, layer in enumerate(before) if layer.cache == cache]
        if not same:
            raise KvtoolError(f"model {self.id}: layer {name!r} has no earlier {own!r} layer to share with")
        return SharedAttention(source_layer=same[-1])

    def _decoder(self) -> Decoder | None:
        default = default_decoder(self.architecture)
        given = {name: value for name, value in msgspec.structs.asdict(self.decoder).items() if value is not None}
        return replace(default, **given) if default else None


class _File(_Strict, frozen=True, kw_only=True):
    schema: str
    models: list[Entry]


class Item:
    """One entry, decoded when it is first asked for: reading the whole file takes longer than sizing a model."""

    def __init__(self, names: Iterable[str], decode: Callable[[], Entry]) -> None:
        self.names = [*dict.fromkeys(name.lower() for own in names for name in (own, own.rsplit("/", 1)[-1]))]
        self._decode = decode

    @functools.cached_property
    def entry(self) -> Entry:
        return self._decode()


class Catalogue:
    """The entries of one file. Iterating gives every Model; `find` gives one, or None."""

    def __init__(self, items: list[Item], path: str) -> None:
        self.path = path
        self._items = items
        self._by_name: dict[str, Item] = {}
        for item in items:
            for name in item.names:
                known = self._by_name.setdefault(name, item)
                if known is not item:
                    raise KvtoolError(f"{path}: {name!r} names both {known.entry.id} and {item.entry.id}")

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Model]:
        return (item.entry.model() for item in self._items)

    def entries(self) -> list[Entry]:
        return [item.entry for item in self._items]

    def find(self, name: str) -> Model | None:
        """The model of that id, alias, checkpoint or last part of one, in any case."""
        wanted = name.strip().lower()
        item = self._by_name.get(wanted)
        return item.entry.named(wanted) if item else None

    def find_variant(self, name: str) -> Model | None:
        """The model that `name` is an Ollama tag, a variant or a quantised repository of; None where none or several
        are it.
        """
        variant = take_apart(name)
        if (found := self._bases.find(variant)) is None:
            return None
        item, relation = found
        return as_variant(item.entry.held_by(name), name.strip(), variant, relation)

    @functools.cached_property
    def _bases(self) -> Bases[Item]:
        return index_bases((item.names, item) for item in self._items)

    def get(self, name: str) -> Model:
        """As `find`, but an unknown name is a KvtoolError with the nearest ones."""
        if (model := self.find(name)) is None:
            raise KvtoolError(f"unknown model {name!r}{self.nearest(name)}")
        return model

    def nearest(self, name: str) -> str:
        """`": did you mean a, b?"` or an empty string."""
        return did_you_mean(name, self._by_name)


def load_catalogue(path: Path | None = None) -> Catalogue:
    """The catalogue in `path`, all of it checked, else kvtool's own, each entry when it is asked for: the checkout's
    models.yaml, or the packaged copy. Raises KvtoolError.
    """
    if path is None:
        own = own_models_path()
        return Catalogue([*_own_items(own.read_text(encoding="utf-8"))], str(own))
    raw = read_yaml(path)
    check_numbers(raw, str(path))
    try:
        refuse_unknown_keys(raw)
        file = msgspec.convert(raw, _File)
    except (msgspec.ValidationError, RecursionError) as error:
        raise KvtoolError(f"{path} is not a catalogue of models: {error}") from error
    if file.schema != _SCHEMA:
        raise KvtoolError(f"{path} has schema {file.schema!r}: this kvtool reads {_SCHEMA}")
    return Catalogue([Item(entry.ids(), functools.partial(_same, entry)) for entry in file.models], str(path))


def _same(entry: Entry) -> Entry:
    return entry


def _own_items(text: str) -> Iterator[Item]:
    """The entries of kvtool's own file, which begin with `- id: NAME` and have `aliases: [A, B]` in one line; one of
    their checkpoints is a line that begins with `- {id: NAME,`.
    """
    for block in _ENTRY.split(text)[1:]:
        name, found = block.partition("\n")[0], _ALIASES.match(block)
        aliases = found[1].split(", ") if found else []
        yield Item((name, *aliases, *_CHECKPOINT.findall(block)), functools.partial(_decode_entry, f"- id: {block}"))


def _decode_entry(text: str) -> Entry:
    (raw,) = yaml.load(text, Loader=yaml.CSafeLoader)
    return msgspec.convert(raw, Entry)


def refuse_unknown_keys(value: object, where: str = "file") -> None:
    """Blocks decode into plain dataclasses, which would drop a misspelt key in silence."""
    if isinstance(value, list):
        for item in value:
            refuse_unknown_keys(item, where)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key in _BLOCKS and isinstance(item, dict):
            unknown = set(item) - {field.name for field in fields(_BLOCKS[key])}
            if unknown:
                raise KvtoolError(f"model {where}: block {key!r} has unknown keys: {', '.join(map(str, unknown))}")
        refuse_unknown_keys(item, str(value.get("id", where)))
