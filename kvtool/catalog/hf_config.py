"""A Hugging Face config.json -> Model. What it says that kvtool does not know is refused by name, never guessed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from kvtool.catalog.attention import attention_name
from kvtool.catalog.families.drafts import draft_layers
from kvtool.catalog.families.family import Family
from kvtool.catalog.families.lengths import DEFAULT_LENGTHS
from kvtool.catalog.families.params_json import as_config, is_params_json
from kvtool.catalog.families.registry import FAMILIES
from kvtool.catalog.families.wrappers import WRAPPERS
from kvtool.catalog.fields import Fields
from kvtool.catalog.hf_decoder import read_decoder
from kvtool.catalog.model import Model
from kvtool.catalog.quantised.config import read_quantisation
from kvtool.catalog.unread import refuse_unread, unread
from kvtool.system.errors import KvtoolError, did_you_mean
from kvtool.system.files import read_bytes, refuse_deep

_TEXT_KEYS = ("text_config", "llm_config", "language_config", "thinker_config")
_CLASS_ENDINGS = ("forcausallm", "forconditionalgeneration", "lmheadmodel", "model")
_ENCODERS = {
    *("albert", "bert", "camembert", "clip", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "eurobert"),
    *("gte", "hubert", "modernbert", "mpnet", "nomic_bert", "roberta", "siglip", "siglip2", "vit", "wav2vec2"),
    *("xlm-roberta", "xlm-roberta-xl"),
}
MODELOPT_NAME = "hf_quant_config.json"
_MAX_CONFIG_BYTES = 16 << 20
_DTYPES = ("float32", "float16", "bfloat16", "float64")


def read_config(path: Path, *, id: str | None = None, family: str | None = None) -> Model:
    """The model that a config.json file describes, with the hf_quant_config.json beside it; `family` as for
    `model_from_config`. Raises KvtoolError.
    """
    config = read_json(path)
    beside = path.with_name(MODELOPT_NAME)
    if path.name == "config.json" and "quantization_config" not in config and beside.is_file():
        config["quantization_config"] = modelopt_export(read_json(beside))
    return model_from_config(config, id=id or _name_of(path), source=str(path), family=family)


def modelopt_export(content: dict[str, object]) -> dict[str, object]:
    """ModelOpt's own file in the form of a config's quantization_config."""
    settings = content.get("quantization")
    return {"quant_method": "modelopt", **(settings if isinstance(settings, dict) else {})}


def _name_of(path: Path) -> str:
    return path.resolve().parent.name if path.name in ("config.json", "params.json") else path.stem


def read_json(path: Path) -> dict[str, object]:
    """The JSON object in a file. Raises KvtoolError when it is missing, too large, not JSON or not an object."""
    return parse_json(read_bytes(path, at_most=_MAX_CONFIG_BYTES, what="config"), str(path))


def parse_json(data: bytes, source: str) -> dict[str, object]:
    """The JSON object in `data`. Raises KvtoolError naming `source`."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise KvtoolError(f"{source} is not JSON: {_reason(error)}") from error
    if not isinstance(value, dict):
        raise KvtoolError(f"{source} is not a config: its JSON is not an object")
    refuse_deep(value, source)
    return value


def _reason(error: Exception) -> str:
    return "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())[:120]


def model_from_config(config: Mapping[str, object], *, id: str, source: str, family: str | None = None) -> Model:
    """The model that a decoded config describes, `text_config` found inside multimodal ones; Mistral's params.json too.
    With `family` it is read as one of that model_type, whatever it calls itself, which `assumed` says.

    Raises KvtoolError for an unknown model_type, layer type or quantisation, a missing or contradictory field, and for
    any field about attention or state that the architecture's reader does not know.
    """
    if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
        raise KvtoolError(f"{source}: not a config object")
    if is_params_json(config):
        config = as_config(config)
    outer = Fields(config, where=source)
    fields, model_type = _text_fields(outer) if family is None else _as_family(outer, family)
    reader = FAMILIES[model_type]
    if family is None:
        _check_class(fields, model_type)
    for name in reader.required:
        if fields.get(name) is None:
            raise fields.error(f"field {name!r} is missing")
    _refuse_encoders(fields, reader)
    shape = reader.shape(fields)
    layers = reader.layers(fields, shape)
    moe = reader.experts(fields, shape)
    about = (len(layers), moe)
    quantisation = read_quantisation(fields, *about) or read_quantisation(outer, *about, text=fields)
    model = Model(
        id=id,
        source=source,
        architecture=model_type,
        attention=attention_name(layers, shape.num_heads),
        layers=tuple(layers),
        hidden_size=shape.hidden_size,
        vocab_size=fields.optional_integer("padded_vocab_size") or fields.optional_integer("vocab_size"),
        num_heads=shape.num_heads,
        intermediate_size=_dense_width(fields, shape.hidden_size, reader),
        draft_layers=draft_layers(fields, model_type, layers),
        moe=moe,
        tie_word_embeddings=_tied(outer, fields, reader),
        max_position_embeddings=_longest(fields, model_type),
        dtype=_dtype(fields, "dtype", "torch_dtype") or _dtype(outer, "dtype", "torch_dtype"),
        recurrent_state_dtype=_dtype(fields, "mamba_ssm_cache_dtype", "mamba_ssm_dtype"),
        quantisation=quantisation,
        decoder=read_decoder(fields, model_type),
        confidence="read from its config",
    )
    if family is not None:
        return replace(model, assumed=(_as_said(outer, fields, model, family),))
    refuse_unread(fields)
    return model


def _as_family(outer: Fields, family: str) -> tuple[Fields, str]:
    """The text model's fields, with the defaults of the type that --as names."""
    model_type = WRAPPERS.get(family) or family
    if model_type not in FAMILIES:
        raise KvtoolError(f"--as {family[:60]!r} is not an architecture{did_you_mean(family[:60], FAMILIES)}")
    inner = next((outer.values[key] for key in _TEXT_KEYS if isinstance(outer.values.get(key), dict)), None)
    if not isinstance(inner, dict):
        return Fields(outer.values, where=outer.where, defaults=FAMILIES[model_type].defaults), model_type
    return Fields(inner, where=outer.where, defaults=FAMILIES[model_type].defaults, outer=outer), model_type


def _as_said(outer: Fields, fields: Fields, model: Model, family: str) -> str:
    """That a config was read as another architecture, and what of it was not understood."""
    own = fields.values.get("model_type") or outer.values.get("model_type")
    left = [name for name in unread(fields) if name != "model_type"]
    rest = f"; not read: {', '.join(left)[:300]}" if left else ""
    return (
        f"assumed: {model.id} is read as {family}, because --as says so, where the config says {str(own)[:60]!r}{rest}"
    )


def _text_fields(outer: Fields) -> tuple[Fields, str]:
    """The fields of the text model and its type: the config itself, or what a known multimodal config wraps."""
    model_type = _type_of(outer)
    inner = next((outer.nested(key) for key in _TEXT_KEYS if isinstance(outer.values.get(key), dict)), None)
    if inner is None:
        return _flat(outer, model_type)
    if model_type in FAMILIES and model_type not in WRAPPERS:
        raise outer.error(f"model_type {model_type!r} is a text model, yet the config nests another one")
    if model_type not in WRAPPERS:
        raise _unknown_type(outer, model_type)
    inner_type = _type_of(inner) or WRAPPERS[model_type]
    if inner_type in WRAPPERS and any(name in inner.values for name in _TEXT_KEYS):
        return _text_fields(inner)
    if inner_type not in FAMILIES:
        raise _unknown_type(inner, inner_type)
    family = FAMILIES[inner_type]
    defaults = {**family.nested, **family.defaults}
    return Fields(inner.values, where=inner.where, defaults=defaults, outer=outer), inner_type


def _flat(outer: Fields, model_type: str | None) -> tuple[Fields, str]:
    if model_type not in FAMILIES:
        if model_type in WRAPPERS:
            raise outer.error("field 'text_config' is missing")
        raise _unknown_type(outer, model_type)
    return Fields(outer.values, where=outer.where, defaults=FAMILIES[model_type].defaults), model_type


def _type_of(fields: Fields) -> str | None:
    """`model_type`; where it is absent or not known, the type that the class in `architectures` is named after, which
    engines go by (DeepSeek's own V4 has the class but calls itself deepseek_ref).
    """
    given = fields.text("model_type")
    return given if given in FAMILIES or given in WRAPPERS else _type_of_class(fields) or given


def _type_of_class(fields: Fields) -> str | None:
    """The known type that the class in `architectures` is named after."""
    by_class = {known.replace("_", "").replace("-", "").lower(): known for known in (*WRAPPERS, *FAMILIES)}
    for name in fields.strings("architectures") or []:
        stem = name.replace("_", "").lower()
        for ending in _CLASS_ENDINGS:
            if stem.endswith(ending) and (known := by_class.get(stem.removesuffix(ending))):
                return known
    return None


def _check_class(fields: Fields, model_type: str) -> None:
    """Engines go by `architectures`: a class whose layers are read in another way contradicts `model_type`."""
    named = _type_of_class(fields)
    text_type = WRAPPERS.get(named, named) if named else None
    if text_type is not None and FAMILIES[text_type].layers is not FAMILIES[model_type].layers:
        raise fields.error(f"model_type is {model_type!r}, but 'architectures' names a class of {named!r}")


def _unknown_type(fields: Fields, model_type: str | None) -> KvtoolError:
    if model_type is None:
        return fields.error("field 'model_type' is missing")
    if model_type in _ENCODERS:
        return fields.error(f"model_type {model_type!r} is an encoder without a decoder: it keeps no KV cache")
    return fields.error(
        f"model_type {model_type[:60]!r} is not known{did_you_mean(model_type[:60], (*FAMILIES, *WRAPPERS))}"
        " (--as FAMILY of every command but advise and tiers reads it as one that it is like, as --as llama)"
    )


def _refuse_encoders(fields: Fields, family: Family) -> None:
    fields.read.add("is_encoder_decoder")
    if not family.encoder_decoder:
        fields.refuse("is_encoder_decoder", "an encoder-decoder of this architecture is not known")
    fields.refuse("add_cross_attention", "cross attention is not known for this architecture")
    if fields.given("use_bidirectional_attention") not in (None, False, "vision"):
        raise fields.error("field 'use_bidirectional_attention' is set: a model without a causal cache is not known")
    if fields.given("is_causal") is False:
        raise fields.error("field 'is_causal' is false: a model without a causal cache is not known")


def _dense_width(fields: Fields, hidden_size: int, family: Family) -> int | None:
    """The MLP's inner size of a dense layer; None where layers differ or nothing says."""
    for name in (
        "dense_intermediate_size",
        "intermediate_size_mlp",
        "intermediate_size",
        "n_inner",
        "ffn_dim",
        "ffn_hidden_size",
        "decoder_ffn_dim",
        "d_ff",
    ):
        value = fields.get(name)
        if isinstance(value, list):
            widths = set(fields.integers(name, low=1) or [])
            return widths.pop() if len(widths) == 1 else None
        if value is not None:
            return fields.integer(name)
    return family.mlp_factor * hidden_size if family.mlp_factor else None


def _longest(fields: Fields, model_type: str) -> int | None:
    """The longest context, by the first of its names that is given, else what transformers takes for this model."""
    for name in (
        "max_target_positions",
        "max_position_embeddings",
        "n_positions",
        "max_seq_len",
        "seq_length",
        "max_context_length",
    ):
        if fields.get(name) is not None:
            return fields.integer(name)
    return DEFAULT_LENGTHS.get(model_type)


def _tied(outer: Fields, fields: Fields, family: Family) -> bool | None:
    for source in (fields, outer):
        if source.get("tie_word_embeddings") is not None:
            return source.flag("tie_word_embeddings", default=False)
    return family.tie


def _dtype(fields: Fields, *names: str) -> str | None:
    """A dtype by torch's name, without its prefix; `auto` says nothing."""
    name = fields.get(*names)
    if name is None or name == "auto":
        return None
    if not isinstance(name, str) or name.removeprefix("torch.") not in _DTYPES:
        raise fields.error(f"dtype {str(name)[:40]!r} is not known (known: {', '.join(_DTYPES)})")
    return name.removeprefix("torch.")
