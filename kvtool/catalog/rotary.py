"""How a config says that positions rotate. A kind of scaling that the engine does not have is named, not guessed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from kvtool.catalog.decoder import RopeScaling
from kvtool.catalog.fields import Fields

_KINDS = ("linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotary:
    """`theta` is None where the config leaves it to its class; `refused` says what the engine does not do."""

    theta: float | None = None
    scaling: RopeScaling | None = None
    fraction: float = 1.0
    refused: str | None = None


def read_rotary(fields: Fields, *, long_factors: bool = False) -> Rotary:
    """The positions of all layers; `long_factors` for an architecture that has LongRoPE and rotates heads in part."""
    nested = fields.nested("rope_parameters") or fields.nested("rope_scaling") or Fields({}, where=fields.where)
    if any(isinstance(value, dict) for value in nested.values.values()):
        return Rotary(refused="rope parameters that differ between layers")
    found = _rotary(nested, fields, long_factors)
    theta = fields.optional_number("rope_theta") if found.theta is None else found.theta
    fraction = nested.optional_number("partial_rotary_factor") or fields.optional_number("partial_rotary_factor") or 1.0
    if fraction != 1.0 and not long_factors:
        return Rotary(refused=f"partial_rotary_factor {fraction:g}")
    return replace(found, theta=theta, fraction=fraction)


def read_local_rotary(fields: Fields) -> tuple[Rotary, Rotary]:
    """Gemma 3's positions, of full layers and of sliding ones, in the form of transformers 5 or the published one."""
    by_type = fields.nested("rope_parameters")
    empty = Fields({}, where=fields.where)
    full = (by_type.nested("full_attention") if by_type else fields.nested("rope_scaling")) or empty
    sliding = (by_type.nested("sliding_attention") if by_type else None) or empty
    whole, local = _rotary(full, fields, False), _rotary(sliding, fields, False)
    if local.scaling is not None:
        local = Rotary(refused="scaled positions in sliding layers")
    if whole.theta is None:
        whole = replace(whole, theta=fields.optional_number("rope_theta"))
    if local.theta is None:
        local = replace(local, theta=fields.optional_number("rope_local_base_freq"))
    return whole, local


def _rotary(nested: Fields, fields: Fields, long_factors: bool) -> Rotary:
    """What one object of rope parameters says."""
    theta = nested.optional_number("rope_theta")
    kind = nested.get("rope_type", "type") if nested.values else "default"
    if kind in (None, "default"):
        return Rotary(theta=theta)
    if long_factors and kind in ("longrope", "su", "yarn"):
        return Rotary(theta=theta, scaling=_long(nested, fields))
    factor = nested.optional_number("factor")
    if kind not in _KINDS:
        return Rotary(theta=theta, refused=f"rope type {str(kind)[:40]!r}")
    if factor is None:
        return Rotary(theta=theta, refused=f"rope type {kind!r} without a factor")
    return Rotary(theta=theta, scaling=_scaling(nested, str(kind), factor))


def _scaling(nested: Fields, kind: str, factor: float) -> RopeScaling:
    return RopeScaling(
        kind=kind,
        factor=factor,
        original_max_position_embeddings=nested.optional_integer("original_max_position_embeddings"),
        low_freq_factor=nested.optional_number("low_freq_factor"),
        high_freq_factor=nested.optional_number("high_freq_factor"),
        beta_fast=nested.optional_number("beta_fast"),
        beta_slow=nested.optional_number("beta_slow"),
        truncate=nested.flag("truncate", default=True),
        attention_factor=nested.optional_number("attention_factor"),
        mscale=nested.optional_number("mscale"),
        mscale_all_dim=nested.optional_number("mscale_all_dim"),
    )


def _long(nested: Fields, fields: Fields) -> RopeScaling:
    """LongRoPE as transformers reads it for Phi-3: the factor is the ratio of contexts unless it is given."""
    longest = fields.integer("max_position_embeddings")
    original = nested.optional_integer("original_max_position_embeddings") or fields.optional_integer(
        "original_max_position_embeddings"
    )
    if original is None:
        raise fields.error("LongRoPE needs 'original_max_position_embeddings'")
    factor = nested.optional_number("factor") or longest / original
    magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    given = nested.optional_number("attention_factor")
    return RopeScaling(
        kind="longrope",
        factor=factor,
        original_max_position_embeddings=original,
        attention_factor=magnitude if given is None else given,
        short_factor=nested.numbers("short_factor"),
    )
