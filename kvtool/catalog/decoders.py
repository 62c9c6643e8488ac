"""The decoders the engine runs: a family's defaults for catalogue entries, and how a config gives one exactly."""

from __future__ import annotations

from kvtool.catalog.fields import Fields
from kvtool.catalog.model import Decoder, RopeScaling, Router

_FAMILY_OF_TYPE = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "mixtral": "mixtral",
    "qwen3_moe": "qwen3_moe",
    "deepseek_v2": "deepseek_v2",
    "deepseek_v3": "deepseek_v3",
    "kimi_k2": "deepseek_v3",
}
_V3_ROUTER = Router(scoring="sigmoid", scale=2.5, groups=8, groups_kept=4, group_score="top2", bias=True)
_DEFAULTS = {
    "llama": Decoder(family="llama", exact=False, norm_eps=1e-5),
    "mistral": Decoder(family="mistral", exact=False, norm_eps=1e-5),
    "qwen2": Decoder(family="qwen2", exact=False, qkv_bias=True, rope_theta=1e6),
    "qwen3": Decoder(family="qwen3", exact=False, qk_norm=True, rope_theta=1e6),
    "mixtral": Decoder(family="mixtral", exact=False, norm_eps=1e-5, rope_theta=1e6, router=Router()),
    "qwen3_moe": Decoder(family="qwen3_moe", exact=False, qk_norm=True, rope_theta=1e6, router=Router()),
    "deepseek_v2": Decoder(family="deepseek_v2", exact=False, rope_interleaved=True, router=Router(normalise=False)),
    "deepseek_v3": Decoder(family="deepseek_v3", exact=False, rope_interleaved=True, router=_V3_ROUTER),
}


def default_decoder(architecture: str | None) -> Decoder | None:
    """The family's defaults, not exact; None for an architecture that the engine does not run."""
    family = _FAMILY_OF_TYPE.get(architecture or "")
    return _DEFAULTS[family] if family else None


def read_decoder(fields: Fields, model_type: str) -> Decoder | None:
    """The decoder a config describes, exactly; None for an architecture, or positions, that the engine does not run."""
    family = _FAMILY_OF_TYPE.get(model_type)
    rope = _read_rope(fields) if family else None
    if family is None or rope is None:
        return None
    theta, scaling = rope
    bias = fields.flag("attention_bias", default=False)
    return Decoder(
        family=family,
        exact=True,
        activation=fields.text("hidden_act", default="silu") or "silu",
        norm_eps=fields.number("rms_norm_eps", default=1e-5 if family == "mixtral" else 1e-6),
        rope_theta=theta if theta is not None else 1e6 if family == "mixtral" else 1e4,
        rope_scaling=scaling,
        rope_interleaved=_interleaved(fields, family),
        qkv_bias=family == "qwen2" or (bias and family not in {"mistral", "mixtral"}),
        output_bias=bias and family not in {"qwen2", "mistral", "mixtral"},
        mlp_bias=family == "llama" and fields.flag("mlp_bias", default=False),
        qk_norm=family in {"qwen3", "qwen3_moe"},
        router=_read_router(fields, family),
        eos_token_ids=_eos(fields),
    )


def _interleaved(fields: Fields, family: str) -> bool:
    return family == "deepseek_v2" or (family == "deepseek_v3" and fields.flag("rope_interleave", default=True))


def _read_rope(fields: Fields) -> tuple[float | None, RopeScaling | None] | None:
    """The base and the scaling of rotary positions; None where their kind is one the engine does not have."""
    nested = fields.nested("rope_parameters") or fields.nested("rope_scaling") or Fields({}, where=fields.where)
    theta = nested.optional_number("rope_theta")
    theta = fields.optional_number("rope_theta") if theta is None else theta
    kind = nested.get("rope_type", "type") if nested.values else "default"
    partial = nested.optional_number("partial_rotary_factor") or fields.optional_number("partial_rotary_factor") or 1.0
    by_layer_type = any(isinstance(value, dict) for value in nested.values.values())
    if by_layer_type or partial != 1.0 or kind not in (None, "default", "llama3", "yarn", "linear"):
        return None
    if kind in (None, "default"):
        return theta, None
    factor = nested.optional_number("factor")
    if factor is None:
        return None
    return theta, RopeScaling(
        kind=str(kind),
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


def _read_router(fields: Fields, family: str) -> Router | None:
    if family == "mixtral":
        return Router()
    if family == "qwen3_moe":
        return Router(normalise=fields.flag("norm_topk_prob", default=False))
    if family == "deepseek_v2":
        grouped = fields.text("topk_method", default="greedy") == "group_limited_greedy"
        return Router(
            normalise=fields.flag("norm_topk_prob", default=False),
            scale=fields.number("routed_scaling_factor", default=1.0),
            groups=fields.optional_integer("n_group") or 1 if grouped else 1,
            groups_kept=fields.optional_integer("topk_group") or 1 if grouped else 1,
        )
    if family == "deepseek_v3":
        return Router(
            scoring="sigmoid",
            normalise=fields.flag("norm_topk_prob", default=True),
            scale=fields.number("routed_scaling_factor", default=2.5),
            groups=fields.optional_integer("n_group") or 8,
            groups_kept=fields.optional_integer("topk_group") or 4,
            group_score="top2",
            bias=True,
        )
    return None


def _eos(fields: Fields) -> tuple[int, ...]:
    value = fields.get("eos_token_id")
    if isinstance(value, list):
        return tuple(fields.integers("eos_token_id") or [])
    token = fields.optional_integer("eos_token_id", low=-1)
    return () if token is None or token < 0 else (token,)
