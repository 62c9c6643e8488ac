"""What each part of a model takes in a quantised checkpoint, from the modules that its config names or leaves out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

from kvtool.catalog.fields import Fields
from kvtool.catalog.model import LayerBits, Moe

MIXERS, DENSE, EXPERTS, BEYOND = "mixers", "dense", "experts", "beyond"
_LISTS = ("ignore", "modules_to_not_convert", "exclude_modules", "ignored_layers", "llm_int8_skip_modules")
_MAX_PATTERN = 300
_PREFIXES = (  # of the text model's layers: not mtp, not visual
    *("", "model.", "language_model.", "model.language_model.", "language_model.model.", "backbone."),
    *("model.model.", "transformer.", "decoder."),
)
_TOWERS = re.compile(r"visual|vision|mtp|projector|embed_vision|audio|image")
_MIXER_OUTPUTS = (
    *("self_attn.o_proj", "linear_attn.out_proj", "mixer.out_proj", "mixer.o_proj", "mamba.out_proj", "attn.o_proj"),
    *("self_attn.qkv_proj", "attention.wo", "attn.wo_b"),
)
_DENSE_OUTPUTS = ("mlp.down_proj", "mixer.down_proj", "feed_forward.w2")
_SHARED_OUTPUTS = tuple(
    f"{block}.{name}.down_proj"
    for block in ("mlp", "block_sparse_moe", "mixer", "moe")
    for name in ("shared_expert", "shared_experts")
)
_EXPERT_OUTPUTS = (
    *("mlp.experts.0.down_proj", "mlp.experts", "block_sparse_moe.experts.0.w2", "mixer.experts.0.down_proj"),
    *("mixer.experts", "feed_forward.experts", "moe.experts.0.w2", "block_sparse_moe.experts"),
)
BitsOf = Callable[[Sequence[str]], "float | None"]


def excluded_modules(fields: Fields) -> list[str]:
    """The patterns of a quantization_config under any of the names in use."""
    patterns: list[str] = []
    for name in _LISTS:
        patterns += fields.strings(name) or []
    return patterns


def parts_left_whole(patterns: Sequence[str], num_layers: int, moe: Moe | None) -> frozenset[str] | None:
    """Of mixers (attention, recurrence), dense MLPs with shared experts, and routed experts, those that no layer
    quantises; None where some layers do and others do not.
    """
    return alike(layers_by_exclusion(patterns, 1.0, num_layers, moe), towers=False)


def towers_left_whole(patterns: Sequence[str]) -> bool:
    """Whether the config leaves out vision towers or draft layers, which are not among the text model's layers."""
    return any(_TOWERS.search(pattern) for pattern in patterns)


def layers_by_exclusion(
    patterns: Sequence[str], bits: float, num_layers: int, moe: Moe | None
) -> tuple[LayerBits, ...]:
    """`bits` for every part of every layer that no pattern leaves out."""
    matchers = [_matcher(pattern) for pattern in patterns if len(pattern) <= _MAX_PATTERN and _names_layers(pattern)]

    def bits_of(names: Sequence[str]) -> float | None:
        return None if any(match(name) for name in names for match in matchers) else bits

    return _layers(bits_of, num_layers, moe)


def layers_by_name(modules: Mapping[str, float], num_layers: int, moe: Moe | None) -> tuple[LayerBits, ...]:
    """What a config that lists each quantised module says of every part of every layer: the first that it names."""
    own = {_own_name(name): bits for name, bits in modules.items()}

    def bits_of(names: Sequence[str]) -> float | None:
        return next((own[name] for name in names if name in own), None)

    return _layers(bits_of, num_layers, moe)


def alike(layers: Sequence[LayerBits], *, towers: bool) -> frozenset[str] | None:
    """The parts that are whole in all layers alike, `towers` among them; None where layers differ."""
    whole = {BEYOND} if towers else set()
    for part, found in (
        (MIXERS, {layer.mixer for layer in layers}),
        (DENSE, {layer.dense for layer in layers if layer.dense != 0}),
        (EXPERTS, {layer.experts for layer in layers if layer.experts != 0}),
    ):
        if len(found) > 1:
            return None
        if found == {None}:
            whole.add(part)
    return frozenset(whole)


def _layers(bits_of: BitsOf, num_layers: int, moe: Moe | None) -> tuple[LayerBits, ...]:
    return tuple(_layer(bits_of, index, moe) for index in range(num_layers))


def _layer(bits_of: BitsOf, index: int, moe: Moe | None) -> LayerBits:
    """Bits of one layer's parts: None for the model's dtype, 0 for a part that it has not."""

    def part(names: Sequence[str]) -> float | None:
        return bits_of([f"layers.{index}.{name}" for name in names])

    if moe is None or not moe.is_sparse(index):
        return LayerBits(mixer=part(_MIXER_OUTPUTS), dense=part(_DENSE_OUTPUTS), experts=0)
    dense = part(_SHARED_OUTPUTS) if moe.shared_intermediate_size else 0
    return LayerBits(mixer=part(_MIXER_OUTPUTS), dense=dense, experts=part(_EXPERT_OUTPUTS))


def _names_layers(pattern: str) -> bool:
    """Whether a pattern may be about a layer: one that may be about any says so in other words than `layers`."""
    return pattern.startswith("re:") or "*" in pattern or "layers" in pattern


def _own_name(module: str) -> str:
    """The name from `layers.` on, of a module of the text model; itself for others."""
    before, _, behind = module.partition("layers.")
    return f"layers.{behind}" if before in _PREFIXES and behind else module


def _matcher(pattern: str) -> Callable[[str], bool]:
    """Regular expressions after `re:`, shell patterns, else the name of a module or of one around it."""
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern.removeprefix("re:"))
        except re.error:
            return lambda name: False
        return lambda name: bool(expression.match(f"model.{name}"))
    own = _own_name(pattern)
    if "*" in own:
        return lambda name: fnmatchcase(name, own) or fnmatchcase(name, f"{own}.*") or fnmatchcase(f"model.{name}", own)
    return lambda name: name == own or name.startswith(f"{own}.")
