"""What each part of a model takes in a quantised checkpoint, from the modules that its config names or leaves out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from kvtool.catalog.fields import Fields
from kvtool.catalog.model import LayerBits, Moe

MIXERS, DENSE, EXPERTS, BEYOND = "mixers", "dense", "experts", "beyond"
_LISTS = ("ignore", "modules_to_not_convert", "exclude_modules", "ignored_layers", "llm_int8_skip_modules")
_MAX_PATTERN = 300
_LAYER = re.compile(r"layers\.(\d{1,6})(?!\d)")
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
_EXPERTS_BESIDE_MLP = ("experts.0.down_proj", "moe.experts.0.down_proj")
_BESIDE_MLP = ("gemma4_text", "gemma4_unified_text")  # a sparse layer of theirs has a dense MLP too
_UNQUANTISED_BITS = 16
BitsOf = Callable[[Sequence[str]], "float | None"]


def excluded_modules(fields: Fields) -> list[str]:
    """The patterns of a quantization_config under any of the names in use."""
    patterns: list[str] = []
    for name in _LISTS:
        patterns += fields.strings(name) or []
    return patterns


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What of a text model decides how its modules are called: `mixer` has the elements of each matrix of a latent
    attention, which a config may store in different ways; nothing for other kinds.
    """

    num_layers: int
    moe: Moe | None
    mixer: Mapping[str, int]
    experts_beside_mlp: bool = False


def shape_of(config: Fields, num_layers: int, moe: Moe | None) -> Shape:
    """From the config of the text model."""
    beside = config.text("model_type") in _BESIDE_MLP
    return Shape(num_layers=num_layers, moe=moe, mixer=_latent_matrices(config), experts_beside_mlp=beside)


def _latent_matrices(config: Fields) -> dict[str, int]:
    """Elements of the projections of MLA by their names; none where a size is not given."""
    names = ("hidden_size", "num_attention_heads", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
    sizes = [config.optional_integer(name, low=0) for name in names]
    if any(size is None for size in sizes):
        return {}
    hidden, heads, latent, rope, nope, v = (size or 0 for size in sizes)
    rank = config.optional_integer("q_lora_rank", low=0)
    query = {"q_a_proj": hidden * rank, "q_b_proj": rank * heads * (nope + rope)} if rank else {}
    return (query or {"q_proj": hidden * heads * (nope + rope)}) | {
        "kv_a_proj_with_mqa": hidden * (latent + rope),
        "kv_b_proj": latent * heads * (nope + v),
        "o_proj": heads * v * hidden,
    }


def towers_left_whole(patterns: Sequence[str], num_layers: int) -> bool:
    """Whether the config leaves out vision towers or draft layers, which are not among the text model's layers."""
    return any(_TOWERS.search(pattern) or _is_draft(pattern, num_layers) for pattern in patterns)


def _is_draft(pattern: str, num_layers: int) -> bool:
    """Whether a pattern is about a whole layer behind the last."""
    found = _LAYER.search(pattern)
    if found is None or len(pattern) > _MAX_PATTERN or not 0 < num_layers <= int(found[1]):
        return False
    match = _matcher(pattern)
    return any(match(f"layers.{found[1]}.{name}") for name in (*_DENSE_OUTPUTS, *_EXPERT_OUTPUTS))


def layers_by_exclusion(patterns: Sequence[str], bits: float, shape: Shape) -> tuple[LayerBits, ...]:
    """`bits` for every part of every layer that no pattern leaves out."""
    matchers = [_matcher(pattern) for pattern in patterns if len(pattern) <= _MAX_PATTERN and _names_layers(pattern)]

    def bits_of(names: Sequence[str]) -> float | None:
        return None if any(match(name) for name in names for match in matchers) else bits

    return _layers(bits_of, shape)


def layers_by_name(modules: Mapping[str, float], shape: Shape) -> tuple[LayerBits, ...]:
    """What a config that lists each quantised module says of every part of every layer: the first that it names."""
    own = {_own_name(name): bits for name, bits in modules.items()}

    def bits_of(names: Sequence[str]) -> float | None:
        return next((own[name] for name in names if name in own), None)

    return _layers(bits_of, shape)


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


def _layers(bits_of: BitsOf, shape: Shape) -> tuple[LayerBits, ...]:
    return tuple(_layer(bits_of, index, shape) for index in range(shape.num_layers))


def _layer(bits_of: BitsOf, index: int, shape: Shape) -> LayerBits:
    """Bits of one layer's parts: None for the model's dtype, 0 for a part that it has not."""

    def part(names: Sequence[str]) -> float | None:
        return bits_of([f"layers.{index}.{name}" for name in names])

    mixer = _averaged(part, shape.mixer)
    if shape.moe is None or not shape.moe.is_sparse(index):
        return LayerBits(mixer=mixer, dense=part(_DENSE_OUTPUTS), experts=0)
    if shape.experts_beside_mlp:
        return LayerBits(mixer=mixer, dense=part(_DENSE_OUTPUTS), experts=part(_EXPERTS_BESIDE_MLP))
    dense = part(_SHARED_OUTPUTS) if shape.moe.shared_intermediate_size else 0
    return LayerBits(mixer=mixer, dense=dense, experts=part(_EXPERT_OUTPUTS))


def _averaged(part: BitsOf, matrices: Mapping[str, int]) -> float | None:
    """Bits of a mixer: of all of it as its output has, or the mean by size of matrices that are stored differently."""
    found = {name: part([f"self_attn.{name}"]) for name in matrices}
    if len(set(found.values())) < 2:
        return part(_MIXER_OUTPUTS)
    bits = sum(size * (found[name] or _UNQUANTISED_BITS) for name, size in matrices.items())
    return bits / sum(matrices.values())


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
