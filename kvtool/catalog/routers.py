"""How a config says that experts are chosen."""

from __future__ import annotations

from kvtool.catalog.decoder import Router
from kvtool.catalog.fields import Fields


def read_router(fields: Fields, family: str) -> Router | None:
    """The router of a decoder family that has one."""
    if family == "mixtral":
        return Router()
    if family == "gpt_oss":
        return Router(logit_bias=True)
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
