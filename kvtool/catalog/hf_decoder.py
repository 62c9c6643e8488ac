"""The decoders the engine runs: a family's defaults for catalogue entries, and how a config gives one exactly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kvtool.catalog.decoder import ClampedSwiglu, Decoder, RopeScaling, Router
from kvtool.catalog.fields import Fields
from kvtool.catalog.rotary import Rotary, read_local_rotary, read_rotary
from kvtool.catalog.routers import read_router

_FAMILY_OF_TYPE = {"kimi_k2": "deepseek_v3"}
_V3_ROUTER = Router(scoring="sigmoid", scale=2.5, groups=8, groups_kept=4, group_score="top2", bias=True)
_GEMMA: dict[str, Any] = {"activation": "gelu_pytorch_tanh", "norms": "around", "scaled_embedding": True}
_GPT_OSS_YARN = RopeScaling(
    kind="yarn", factor=32.0, beta_fast=32.0, beta_slow=1.0, truncate=False, original_max_position_embeddings=4096
)
_LEARNED: dict[str, Any] = {
    "gated_mlp": False,
    "norm_eps": 1e-5,
    "norm_kind": "layer",
    "rope_pattern": (False,),
    "qkv_bias": True,
    "output_bias": True,
    "mlp_bias": True,
}


def _of_family(family: str, **options: Any) -> Decoder:
    return Decoder(family=family, exact=False, **options)


# What a family's published models have in common.
_DEFAULTS = {
    decoder.family: decoder
    for decoder in (
        _of_family("llama", norm_eps=1e-5),
        _of_family("mistral", norm_eps=1e-5),
        _of_family("qwen2", qkv_bias=True, rope_theta=1e6),
        _of_family("qwen3", qk_norm=True, rope_theta=1e6),
        _of_family("mixtral", norm_eps=1e-5, rope_theta=1e6, router=Router()),
        _of_family("qwen3_moe", qk_norm=True, rope_theta=1e6, router=Router()),
        _of_family("deepseek_v2", rope_interleaved=True, router=Router(normalise=False)),
        _of_family("deepseek_v3", rope_interleaved=True, router=_V3_ROUTER),
        _of_family("phi3", norm_eps=1e-5),
        _of_family("olmo2", norms="after", qk_norm=True, qk_norm_spans_heads=True, rope_theta=5e5),
        _of_family("smollm3", rope_theta=2e6, rope_pattern=(True, True, True, False)),
        _of_family("gemma2", attention_softcap=50.0, logit_softcap=30.0, **_GEMMA),
        _of_family("gemma3_text", qk_norm=True, rope_theta=1e6, local_rope_theta=1e4, **_GEMMA),
        _of_family(
            "gpt_oss",
            clamped_swiglu=ClampedSwiglu(),
            norm_eps=1e-5,
            rope_theta=1.5e5,
            rope_scaling=_GPT_OSS_YARN,
            attention_sinks=True,
            qkv_bias=True,
            output_bias=True,
            mlp_bias=True,
            router=Router(logit_bias=True),
        ),
        _of_family("gpt2", activation="gelu_new", position_offset=0, **_LEARNED),
        _of_family("opt", activation="relu", position_offset=2, **_LEARNED),
    )
}
# What transformers takes where a config does not say.
_CLASS_EPS = dict.fromkeys(("mixtral", "phi3", "olmo2", "gpt_oss"), 1e-5)
_CLASS_THETA = {"mixtral": 1e6, "smollm3": 2e6, "gpt_oss": 1.5e5, "gemma3_text": 1e6}


def default_decoder(architecture: str | None) -> Decoder | None:
    """The family's defaults, not exact; None for an architecture that the engine does not run."""
    return _DEFAULTS.get(_FAMILY_OF_TYPE.get(architecture or "", architecture or ""))


def read_decoder(fields: Fields, model_type: str) -> Decoder | None:
    """The decoder a config describes, exactly; None for an architecture that the engine does not run.

    What the config asks for that the engine does not do is in `refused`.
    """
    default = default_decoder(model_type)
    if default is None:
        return None
    family = default.family
    decoder = replace(default, exact=True, router=read_router(fields, family), eos_token_ids=_eos(fields))
    if decoder.position_offset is not None:
        return replace(decoder, **_learned(fields, family))
    decoder = replace(
        decoder,
        activation=_activation(fields, default),
        norm_eps=fields.number("rms_norm_eps", default=_CLASS_EPS.get(family, 1e-6)),
        **_biases(fields, family),
    )
    if family == "gemma3_text":
        return replace(decoder, **_gemma(fields, 0.0, 0.0), **_local_positions(fields))
    decoder = replace(decoder, **_positions(read_rotary(fields, long_factors=family == "phi3"), family))
    if family == "gemma2":
        return replace(decoder, **_gemma(fields, 50.0, 30.0))
    if family == "smollm3":
        return replace(decoder, rope_pattern=_rotating(fields))
    if family == "gpt_oss":
        return _gpt_oss(fields, decoder)
    return replace(decoder, rope_interleaved=_interleaved(fields, family))


def _activation(fields: Fields, default: Decoder) -> str:
    """Gemma's own field stands before the usual one, as in transformers."""
    if default.family.startswith("gemma"):
        return fields.text("hidden_activation", default=default.activation) or default.activation
    return fields.text("hidden_act", default="silu") or "silu"


def _biases(fields: Fields, family: str) -> dict[str, Any]:
    biased = fields.flag("attention_bias", default=family == "gpt_oss")
    never = {"mistral", "mixtral", "phi3"}
    return {
        "qkv_bias": family == "qwen2" or (biased and family not in never),
        "output_bias": biased and family not in {"qwen2", *never},
        "mlp_bias": family == "gpt_oss" or (family in {"llama", "smollm3"} and fields.flag("mlp_bias", default=False)),
    }


def _positions(rotary: Rotary, family: str) -> dict[str, Any]:
    return {
        "rope_theta": _CLASS_THETA.get(family, 1e4) if rotary.theta is None else rotary.theta,
        "rope_scaling": rotary.scaling,
        "rotary_fraction": rotary.fraction,
        "refused": rotary.refused,
    }


def _local_positions(fields: Fields) -> dict[str, Any]:
    full, sliding = read_local_rotary(fields)
    capped = "attn_logit_softcapping in Gemma 3" if fields.given("attn_logit_softcapping") else None
    return {
        **_positions(full, "gemma3_text"),
        "local_rope_theta": 1e4 if sliding.theta is None else sliding.theta,
        "refused": full.refused or sliding.refused or capped,
    }


def _gemma(fields: Fields, attention_softcap: float, logit_softcap: float) -> dict[str, Any]:
    """Soft-caps that the config gives or switches off with null, and what queries are scaled by."""
    caps = [
        fields.number(name, default=0.0 if fields.has(name) else default)
        for name, default in (("attn_logit_softcapping", attention_softcap), ("final_logit_softcapping", logit_softcap))
    ]
    return {
        "attention_softcap": caps[0],
        "logit_softcap": caps[1],
        "attention_scale": fields.number("query_pre_attn_scalar", default=256.0) ** -0.5,
    }


def _rotating(fields: Fields) -> tuple[bool, ...]:
    """SmolLM3: one flag a layer, or every fourth layer without rotation."""
    flags = fields.integers("no_rope_layers", high=1)
    if flags:
        return tuple(flag == 1 for flag in flags)
    interval = fields.optional_integer("no_rope_layer_interval") or 4
    return (True,) * (interval - 1) + (False,)


def _gpt_oss(fields: Fields, decoder: Decoder) -> Decoder:
    swiglu = ClampedSwiglu(
        alpha=fields.number("swiglu_alpha", default=1.702), limit=fields.number("swiglu_limit", default=7.0)
    )
    says_positions = fields.given("rope_parameters") or fields.given("rope_scaling")
    scaling = decoder.rope_scaling if says_positions else _GPT_OSS_YARN
    unknown = None if decoder.activation == "silu" else f"activation {decoder.activation!r}"
    return replace(decoder, clamped_swiglu=swiglu, rope_scaling=scaling, refused=decoder.refused or unknown)


def _learned(fields: Fields, family: str) -> dict[str, Any]:
    """GPT-2 and OPT, and their switches that no published decoder of the engine's form has."""
    if family == "gpt2":
        off = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
        activation, eps, biased = "gelu_new", fields.number("layer_norm_epsilon", default=1e-5), True
    else:
        off = {"do_layer_norm_before": True, "layer_norm_elementwise_affine": True, "_remove_final_layer_norm": False}
        activation, eps, biased = "relu", 1e-5, fields.flag("enable_bias", default=True)
    refused = [
        f"{name} {str(not usual).lower()}" for name, usual in off.items() if fields.flag(name, default=usual) != usual
    ]
    projected = fields.optional_integer("word_embed_proj_dim")
    if projected is not None and projected != fields.optional_integer("hidden_size"):
        refused.append(f"word_embed_proj_dim {projected}")
    return {
        "activation": fields.text("activation_function", default=activation) or activation,
        "norm_eps": eps,
        **dict.fromkeys(("qkv_bias", "output_bias", "mlp_bias"), biased),
        "refused": ", ".join(refused) or None,
    }


def _interleaved(fields: Fields, family: str) -> bool:
    return family == "deepseek_v2" or (family == "deepseek_v3" and fields.flag("rope_interleave", default=True))


def _eos(fields: Fields) -> tuple[int, ...]:
    """A multimodal config says them outside its text model."""
    value = fields.get("eos_token_id")
    if value is None and fields.outer is not None:
        return _eos(fields.outer)
    if isinstance(value, list):
        return tuple(fields.integers("eos_token_id") or [])
    token = fields.optional_integer("eos_token_id", low=-1)
    return () if token is None or token < 0 else (token,)
