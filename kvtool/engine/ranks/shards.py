"""A rank's part of a model, and of each tensor: heads, rows of the MLP and of the vocabulary."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor

from kvtool.catalog.model import FullAttention, Layer, Model, Moe
from kvtool.engine.weights.source import WeightSource
from kvtool.machine.ranks.layout import RankLayout, even_part, kv_head_range

_QUERY_ROWS = re.compile(r"self_attn\.(q_proj\.(weight|bias)|q_b_proj\.weight|kv_b_proj\.weight|sinks)$")
_KV_ROWS = re.compile(r"self_attn\.[kv]_proj\.(weight|bias)$")
_MLP_ROWS = re.compile(r"mlp\..*(gate_proj|up_proj)\.(weight|bias)$")
_COLUMNS = re.compile(r"(self_attn\.o_proj|mlp\..*down_proj)\.weight$")
_ONCE = re.compile(r"(self_attn\.o_proj|mlp\..*down_proj)\.bias$")
_VOCABULARY = re.compile(r"(embed_tokens|lm_head)\.weight$")


def shard_of(model: Model, layout: RankLayout, index: int) -> Model:
    """The model that tensor rank `index` runs: fewer heads, a narrower MLP, a part of the vocabulary."""
    if layout.tp == 1:
        return model
    vocabulary = model.vocab_size
    return replace(
        model,
        num_heads=model.num_heads // layout.heads_tp,
        layers=tuple(_layer(layer, layout.heads_tp, index % layout.heads_tp) for layer in model.layers),
        intermediate_size=_width(model.intermediate_size, layout.tp, index),
        moe=None if model.moe is None else _moe(model.moe, layout.tp, index),
        vocab_size=_width(vocabulary, layout.tp, index) if layout.shares_vocabulary else vocabulary,
        params_total=None,
        weights_bytes=None,
    )


def _width(width: int | None, tp: int, index: int) -> int | None:
    return None if width is None else len(even_part(width, tp, index))


def _layer(layer: Layer, tp: int, index: int) -> Layer:
    cache = layer.cache
    if not isinstance(cache, FullAttention):
        return layer
    return replace(layer, cache=replace(cache, kv_heads=len(kv_head_range(cache.kv_heads, tp, index))))


def _moe(moe: Moe, tp: int, index: int) -> Moe:
    return replace(
        moe,
        intermediate_size=len(even_part(moe.intermediate_size, tp, index)),
        shared_intermediate_size=len(even_part(moe.shared_intermediate_size, tp, index)),
    )


class ShardedWeights:
    """Tensors of the whole model, of which a rank is given its part. `loaded_bytes` counts what was given."""

    def __init__(self, source: WeightSource, model: Model, layout: RankLayout, index: int) -> None:
        """`model` is the whole."""
        self.description, self.even_routing = source.description, source.even_routing
        self.loaded_bytes = 0
        self._source, self._model, self._layout, self._index = source, model, layout, index

    def tensor(self, name: str, *shape: int) -> Tensor:
        part = self._part(name, shape)
        self.loaded_bytes += part.numel() * part.element_size()
        return part

    def blocks(self, name: str) -> None:
        """A part of a matrix may begin in the middle of a block: ranks multiply by what blocks were made of."""
        return None

    def _part(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if self._layout.tp == 1:
            return self._source.tensor(name, *shape)
        if _ONCE.search(name) and not self._is_whole(name):  # what is added after the sum is one rank's to add
            whole = self._source.tensor(name, *shape)
            return whole if self._index == 0 else torch.zeros_like(whole)
        dimension = 1 if _COLUMNS.search(name) else 0
        total, mine = (None, range(0)) if self._is_whole(name) else self._split(name)
        if total is None:
            return self._source.tensor(name, *shape)
        unit = shape[dimension] // len(mine)
        whole_shape = [*shape]
        whole_shape[dimension] = total * unit
        whole = self._source.tensor(name, *whole_shape)
        # A copy: the whole tensor must not stay in memory for its part.
        return whole.narrow(dimension, mine.start * unit, len(mine) * unit).clone()

    def _is_whole(self, name: str) -> bool:
        """Whether it is of an attention that is in replicas."""
        return self._layout.heads_tp == 1 and ".self_attn." in name

    def _split(self, name: str) -> tuple[int | None, range]:
        """Of how many things (heads, rows of an MLP, tokens) a tensor is made, and which are this rank's."""
        model, tp, index = self._model, self._layout.tp, self._index
        if _QUERY_ROWS.search(name) or name.endswith("self_attn.o_proj.weight"):
            return model.num_heads, even_part(model.num_heads, tp, index)
        if _KV_ROWS.search(name):
            kv_heads = self._kv_heads(name)
            return kv_heads, kv_head_range(kv_heads, tp, index)
        if _MLP_ROWS.search(name) or _COLUMNS.search(name):
            width = self._mlp_width(name)
            return width, even_part(width, tp, index)
        if _VOCABULARY.search(name) and self._layout.shares_vocabulary:
            assert model.vocab_size is not None
            return model.vocab_size, even_part(model.vocab_size, tp, index)
        return None, range(0)

    def _kv_heads(self, name: str) -> int:
        found = re.match(r"model\.layers\.(\d+)\.", name)
        assert found is not None
        cache = self._model.layers[int(found[1])].cache
        assert isinstance(cache, FullAttention)
        return cache.kv_heads

    def _mlp_width(self, name: str) -> int:
        moe = self._model.moe
        if ".experts." in name:
            assert moe is not None
            return moe.intermediate_size
        if ".shared_experts." in name:
            assert moe is not None
            return moe.shared_intermediate_size
        assert self._model.intermediate_size is not None
        return self._model.intermediate_size
