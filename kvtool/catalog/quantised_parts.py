"""Which parts of a model a quantised checkpoint leaves at the model's dtype, from the modules its config excludes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from kvtool.catalog.fields import Fields
from kvtool.catalog.model import Moe

MIXERS, DENSE, EXPERTS = "mixers", "dense", "experts"
_LISTS = ("ignore", "modules_to_not_convert", "exclude_modules", "ignored_layers")
_MAX_PATTERN = 300
_PREFIXES = ("", "model.", "language_model.", "model.language_model.", "language_model.model.")  # not mtp, not visual
_MIXER_OUTPUTS = ("self_attn.o_proj", "linear_attn.out_proj", "mixer.out_proj", "mixer.o_proj", "mamba.out_proj")


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
    matchers = [
        _matcher(pattern) for pattern in patterns if len(pattern) <= _MAX_PATTERN and "layers" in _plain(pattern)
    ]
    whole = set()
    for part, probes in _probes(num_layers, moe).items():
        found = {any(match(name) for name in names for match in matchers) for names in probes}
        if len(found) > 1:
            return None
        if found == {True}:
            whole.add(part)
    return frozenset(whole)


def _plain(pattern: str) -> str:
    """A pattern that may be about any layer says so in other words than `layers`."""
    return "layers" if pattern.startswith("re:") or "*" in pattern else pattern


def _probes(num_layers: int, moe: Moe | None) -> dict[str, list[list[str]]]:
    """For each part, the modules of every layer of which one would be excluded."""
    probes: dict[str, list[list[str]]] = {MIXERS: [], DENSE: [], EXPERTS: []}
    for index in range(num_layers):
        layer = f"layers.{index}"
        probes[MIXERS].append([f"{layer}.{name}" for name in _MIXER_OUTPUTS])
        if moe is None or not moe.is_sparse(index):
            probes[DENSE].append([f"{layer}.mlp.down_proj"])
            continue
        probes[EXPERTS].append([f"{layer}.mlp.experts.0.down_proj"])
        if moe.shared_intermediate_size:
            probes[DENSE].append([f"{layer}.mlp.{name}.down_proj" for name in ("shared_expert", "shared_experts")])
    return probes


def _matcher(pattern: str) -> Callable[[str], bool]:
    """Regular expressions after `re:`, shell patterns, else the name of a module or of one around it."""
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern.removeprefix("re:"))
        except re.error:
            return lambda name: False
        return lambda name: bool(expression.match(f"model.{name}"))
    before, _, behind = pattern.partition("layers.")
    own = f"layers.{behind}" if before in _PREFIXES and behind else pattern
    if "*" in own:
        return lambda name: fnmatchcase(name, own) or fnmatchcase(name, f"{own}.*") or fnmatchcase(f"model.{name}", own)
    return lambda name: name == own or name.startswith(f"{own}.")
