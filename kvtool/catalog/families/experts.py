"""Mixtures of experts: how many there are, how wide, and which layers have them."""

from __future__ import annotations

from kvtool.catalog.families.family import Shape
from kvtool.catalog.fields import Fields
from kvtool.catalog.model import Moe

_COUNT = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts", "experts_per_token")
_WIDTH = ("moe_intermediate_size", "expert_ffn_hidden_size")
_SHARED_COUNT = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")
_SHARED_WIDTH = (
    "shared_expert_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "shared_intermediate_size",
    "shared_experts_intermediate_size",
    "share_expert_dim",
)


def experts(fields: Fields, shape: Shape) -> Moe | None:
    """The experts of any architecture that names them in the usual ways; None for a dense model (0 or 1 expert)."""
    count = fields.uniform(*_COUNT, low=0)
    if count is None or count <= 1 or not fields.flag("enable_moe_block", default=True):
        return None
    width = fields.uniform(*_WIDTH) or fields.integer("intermediate_size")
    per_token = fields.uniform(*_PER_TOKEN, high=count)
    if per_token is None:
        raise fields.error(f"field {_PER_TOKEN[0]!r} is missing")
    first, step = _sparse_layers(fields, shape)
    return Moe(
        num_experts=count,
        experts_per_token=per_token,
        intermediate_size=width,
        shared_intermediate_size=_shared_width(fields, width),
        first_dense_layers=first,
        layer_step=step,
        hidden_size=fields.optional_integer("moe_latent_size", "routed_expert_hidden_size"),
    )


def _shared_width(fields: Fields, width: int) -> int:
    """Together, all shared experts of a layer. A width given on its own already counts one expert of that size."""
    number = fields.uniform(*_SHARED_COUNT, low=0)
    given = fields.optional_integer(*_SHARED_WIDTH, low=0)
    return given if given is not None else (number or 0) * width


def _sparse_layers(fields: Fields, shape: Shape) -> tuple[int, int]:
    """How many layers stay dense at the start, and then every how many layers one has experts."""
    layers = range(shape.num_layers)
    types = fields.strings("mlp_layer_types", length=shape.num_layers)
    if types is not None:
        return _from_flags(fields, [name == "sparse" for name in types], "mlp_layer_types")
    if isinstance(fields.get("moe_layer_freq"), list):
        marks = fields.integers("moe_layer_freq", length=shape.num_layers, high=1) or []
        return _from_flags(fields, [mark == 1 for mark in marks], "moe_layer_freq")
    first = fields.optional_integer("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index", low=0) or 0
    counted = fields.optional_integer("decoder_sparse_step", "moe_layer_interval") or 1
    frequency = fields.optional_integer("moe_layer_freq") or 1
    dense = set(fields.integers("mlp_only_layers", high=shape.num_layers - 1) or [])
    if fields.optional_integer("moe_layer_end_index", low=-1) not in {None, -1, shape.num_layers - 1}:
        raise fields.error("'moe_layer_end_index' is not the last layer, which cannot be counted")
    sparse = [
        layer >= first and (layer + 1) % counted == 0 and layer % frequency == 0 and layer not in dense
        for layer in layers
    ]
    return _from_flags(fields, sparse, "mlp_only_layers")


def _from_flags(fields: Fields, sparse: list[bool], field: str) -> tuple[int, int]:
    """The first sparse layer and the step that reproduce `sparse`, exactly or not at all."""
    at = [layer for layer, flag in enumerate(sparse) if flag]
    if not at:
        return len(sparse), 1
    step = at[1] - at[0] if len(at) > 1 else len(sparse)
    if at != list(range(at[0], len(sparse), step)):
        raise fields.error(f"{field!r} puts experts on irregular layers, which cannot be counted")
    return at[0], step


def periodic_experts(fields: Fields, shape: Shape) -> Moe | None:
    """Jamba: experts at `expert_layer_offset` of every `expert_layer_period` layers."""
    count = fields.optional_integer("num_experts", low=0)
    if count is None or count <= 1:
        return None
    period = fields.integer("expert_layer_period")
    return Moe(
        num_experts=count,
        experts_per_token=fields.integer("num_experts_per_tok", high=count),
        intermediate_size=fields.integer("intermediate_size"),
        first_dense_layers=fields.integer("expert_layer_offset", low=0, high=period - 1),
        layer_step=period,
    )


def llama4_experts(fields: Fields, shape: Shape) -> Moe | None:
    """Llama 4: one shared expert as wide as the routed ones; dense layers are `intermediate_size_mlp` wide."""
    step = fields.optional_integer("interleave_moe_layer_step") or 1
    width = fields.integer("intermediate_size")
    at = fields.integers("moe_layers", high=shape.num_layers - 1) or list(range(step - 1, shape.num_layers, step))
    first, step = _from_flags(fields, [layer in set(at) for layer in range(shape.num_layers)], "moe_layers")
    count = fields.integer("num_local_experts")
    return Moe(
        num_experts=count,
        experts_per_token=fields.integer("num_experts_per_tok", high=count),
        intermediate_size=width,
        shared_intermediate_size=width,
        first_dense_layers=first,
        layer_step=step,
    )


def nested_experts(fields: Fields, shape: Shape) -> Moe | None:
    """DBRX: the experts stand in `ffn_config`."""
    nested = fields.nested("ffn_config")
    if nested is None:
        raise fields.error("field 'ffn_config' is missing")
    count = nested.integer("moe_num_experts")
    return Moe(
        num_experts=count,
        experts_per_token=nested.integer("moe_top_k", high=count),
        intermediate_size=nested.integer("ffn_hidden_size"),
    )
