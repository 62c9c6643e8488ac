"""Layers of a .gguf file with a recurrent or convolution state: which they are, and its shape (as in llama.cpp)."""

from __future__ import annotations

from collections.abc import Callable

from kvtool.catalog.fields import Fields
from kvtool.catalog.model import (
    GatedDeltaNet,
    KimiDeltaAttention,
    Mamba1,
    Mamba2,
    RecurrentLayer,
    ShortConvolution,
)

_DEFAULT_INTERVAL = 4


def recurrent_state(fields: Fields, arch: str) -> RecurrentLayer | None:
    """What each recurrent layer keeps; None for an architecture without any. Raises KvtoolError."""
    reader = _STATES.get(arch)
    return reader(fields) if reader else None


def recurrent_at(fields: Fields, arch: str, count: int, kv_heads: list[int]) -> list[bool]:
    """Which layers are recurrent: every one, all but each nth, or those without KV heads (and without an MLP, in
    Nemotron-H, whose layers have one or the other).
    """
    if arch in _PURE:
        return [True] * count
    if arch in _BY_INTERVAL:
        interval = fields.optional_integer("full_attention_interval") or _DEFAULT_INTERVAL
        return [(layer + 1) % interval != 0 for layer in range(count)]
    if arch not in _MIXER_OR_MLP:
        return [number == 0 for number in kv_heads]
    widths = fields.integers("feed_forward_length") if isinstance(fields.get("feed_forward_length"), list) else None
    if widths is None or len(widths) < count:
        raise fields.error("'feed_forward_length' does not say which layers are an MLP")
    return [number == 0 and width == 0 for number, width in zip(kv_heads, widths, strict=False)]


def _mamba1(fields: Fields) -> Mamba1:
    fields.read |= {"ssm.time_step_rank", "ssm.dt_b_c_rms"}
    return Mamba1(
        inner_dim=fields.integer("ssm.inner_size"),
        state_dim=fields.integer("ssm.state_size"),
        conv_kernel=fields.integer("ssm.conv_kernel"),
    )


def _mamba2(fields: Fields) -> Mamba2:
    """`time_step_rank` counts the heads."""
    inner, heads = fields.integer("ssm.inner_size"), fields.integer("ssm.time_step_rank")
    return Mamba2(
        heads=heads,
        head_dim=_split(fields, inner, heads),
        state_dim=fields.integer("ssm.state_size"),
        groups=fields.integer("ssm.group_count"),
        conv_kernel=fields.integer("ssm.conv_kernel"),
    )


def _gated_delta_net(fields: Fields) -> GatedDeltaNet:
    """Groups are the key heads of `state_size`, `time_step_rank` counts the value heads."""
    values = fields.integer("ssm.time_step_rank")
    return GatedDeltaNet(
        key_heads=fields.integer("ssm.group_count"),
        value_heads=values,
        key_head_dim=fields.integer("ssm.state_size"),
        value_head_dim=_split(fields, fields.integer("ssm.inner_size"), values),
        conv_kernel=fields.integer("ssm.conv_kernel"),
    )


def _kimi_delta(fields: Fields) -> KimiDeltaAttention:
    return KimiDeltaAttention(
        heads=fields.integer("attention.head_count"),
        head_dim=fields.integer("kda.head_dim"),
        conv_kernel=fields.integer("ssm.conv_kernel"),
    )


def _short_convolution(fields: Fields) -> ShortConvolution:
    return ShortConvolution(
        dim=fields.integer("embedding_length"), conv_kernel=fields.integer("shortconv.l_cache", low=2)
    )


def _split(fields: Fields, inner: int, heads: int) -> int:
    if inner % heads:
        raise fields.error(f"'ssm.inner_size' {inner} does not divide into {heads} heads ('ssm.time_step_rank')")
    return inner // heads


_PURE = {"mamba", "mamba2"}
_BY_INTERVAL = {"qwen3next", "qwen35", "qwen35moe"}
_MIXER_OR_MLP = {"nemotron_h", "nemotron_h_moe"}
_STATES: dict[str, Callable[[Fields], RecurrentLayer]] = {
    **dict.fromkeys(("mamba", "jamba"), _mamba1),
    **dict.fromkeys(("mamba2", "granitehybrid", *_MIXER_OR_MLP), _mamba2),
    **dict.fromkeys(_BY_INTERVAL, _gated_delta_net),
    "kimi-linear": _kimi_delta,
    **dict.fromkeys(("lfm2", "lfm2moe"), _short_convolution),
}
