"""Bytes moved and operations done by a prefill and by a decode step: plain functions of specs, models and lengths.

A multiply-accumulate is two FLOPs. Softmax, norms, rotary positions and sampling are not counted: they are small.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

from kvtool.catalog.model import (
    ChunkedAttention,
    CompressedAttention,
    CrossAttention,
    FullAttention,
    LatentAttention,
    Layer,
    Model,
    Moe,
    SharedAttention,
    SlidingAttention,
)
from kvtool.sizing.layers import top_k_by_layer
from kvtool.sizing.params import count_params
from kvtool.sizing.specs import CacheSpec
from kvtool.sizing.specs.recurrent import conv_elements, recurrent_elements

AlikeLayers = tuple[tuple[tuple[Layer, int | None], int], ...]

FLOPS_PER_STATE_ELEMENT = 4  # a token adds an outer product to the state (2) and reads it out (2)


def decode_kv_read_bytes(specs: Iterable[CacheSpec], context_lens: Sequence[int]) -> int:
    """Bytes of cache that one decode step reads for sequences of these lengths, the new token included."""
    counts, lengths = Counter(specs), Counter(context_lens)
    return sum(
        layers * sequences * spec.read_bytes(tokens)
        for spec, layers in counts.items()
        for tokens, sequences in lengths.items()
    )


def kv_written_bytes(specs: Iterable[CacheSpec], tokens: int) -> int:
    """Bytes of cache that storing `tokens` new tokens writes; windows write theirs too, over older ones."""
    return tokens * sum(spec.bytes_per_token for spec in specs if spec.per_token)


def experts_touched(moe: Moe, tokens: int) -> float:
    """Distinct experts of a layer that `tokens` tokens are expected to reach, routed evenly: E x (1 - (1 - k/E)^n)."""
    return moe.num_experts * (1 - (1 - moe.experts_per_token / moe.num_experts) ** tokens)


def decode_flops(model: Model, context_lens: Sequence[int]) -> int | None:
    """FLOPs of one decode step of sequences of these lengths; None where the parameters cannot be counted."""
    return decode_work(model).flops(context_lens)


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """A model's decode step, ready to be asked for many lengths: FLOPs a token besides attention, None where the
    parameters cannot be counted, and how many layers are alike in cache and top k.
    """

    model: Model
    per_token: int | None
    layers: AlikeLayers

    def flops(self, context_lens: Sequence[int]) -> int | None:
        """FLOPs of a step of sequences of these lengths."""
        if self.per_token is None:
            return None
        return self.per_token * len(context_lens) + sum(
            sequences * _attention_flops(self.model, self.layers, 1, tokens - 1)
            for tokens, sequences in Counter(context_lens).items()
        )


def decode_work(model: Model) -> DecodeWork:
    return DecodeWork(model, _weight_flops(model, tokens=1, heads=1), _alike(model))


def prefill_flops(model: Model, new_tokens: int, cached_tokens: int = 0) -> int | None:
    """FLOPs of one sequence's prefill of `new_tokens` behind `cached_tokens`; None where parameters cannot be counted.

    The output head runs for the last token only.
    """
    work = prefill_work(model)
    return None if work is None else work.flops(new_tokens, cached_tokens)


@dataclass(frozen=True, slots=True)
class PrefillWork:
    """A model's prefill, ready to be asked for many lengths: `once` FLOPs for its last token, `per_token` besides
    attention, and how many layers are alike in cache and top k.
    """

    model: Model
    once: int
    per_token: int
    layers: AlikeLayers

    def flops(self, new_tokens: int, cached_tokens: int = 0) -> int:
        """FLOPs of `new_tokens` behind `cached_tokens`."""
        attention = _attention_flops(self.model, self.layers, new_tokens, cached_tokens)
        return self.once + self.per_token * new_tokens + attention


def prefill_work(model: Model) -> PrefillWork | None:
    """None where the parameters cannot be counted."""
    once = _weight_flops(model, tokens=0, heads=1)
    whole = _weight_flops(model, tokens=1, heads=1)
    if once is None or whole is None:
        return None
    return PrefillWork(model, once, whole - once, _alike(model))


def even_context_tokens(model: Model) -> float:
    """The context at which attention takes as many FLOPs a token as all else does, infinite where it does not grow:
    between 64k and 65k, where windows and top-k have stopped to. Parameters that cannot be counted count nothing."""
    far, step = 64 * 1024, 1024
    near = attention_flops(model, new_tokens=step, cached_tokens=far)
    growth = (attention_flops(model, new_tokens=step, cached_tokens=far + step) - near) / step**2
    weights = _weight_flops(model, tokens=1, heads=0) or 0
    return weights / growth if growth else inf


def _weight_flops(model: Model, *, tokens: int, heads: int) -> int | None:
    """Two FLOPs per parameter and token; the output head for `heads` of them."""
    params = count_params(model)
    if params is None:
        return None
    active = params.layers
    if model.moe is not None:
        active += params.experts * model.moe.experts_per_token // model.moe.num_experts
    head = params.embedding if params.tied else params.head
    return 2 * (active * tokens + head * heads)


def attention_flops(model: Model, *, new_tokens: int, cached_tokens: int) -> int:
    """FLOPs of scores, weighted sums, index scores and state updates of one sequence, over all layers."""
    return _attention_flops(model, _alike(model), new_tokens, cached_tokens)


def _attention_flops(model: Model, layers: AlikeLayers, new: int, cached: int) -> int:
    return sum(count * _layer_flops(model, layer, top_k, new, cached) for (layer, top_k), count in layers)


def _alike(model: Model) -> AlikeLayers:
    """How many layers there are of each cache and top k."""
    return tuple(Counter(zip(model.layers, top_k_by_layer(model), strict=True)).items())


def _layer_flops(model: Model, layer: Layer, top_k: int | None, new: int, cached: int) -> int:
    if isinstance(layer.cache, SharedAttention):
        source = layer.cache.source_layer
        return 0 if source is None else _layer_flops(model, model.layers[source], top_k, new, cached)
    flops = 0
    if layer.indexer is not None:
        scored = _pairs(new, cached, None, layer.indexer.ratio)
        flops += 2 * layer.indexer.heads * layer.indexer.head_dim * scored
    if layer.cross is not None:
        flops += _pair_flops(model, layer.cross) * new * layer.cross.encoder_tokens
    match layer.cache:
        case None:
            return flops
        case CrossAttention(encoder_tokens=tokens):
            return flops + _pair_flops(model, layer.cache) * new * tokens
        case SlidingAttention(window=window) | ChunkedAttention(window=window):
            return flops + _pair_flops(model, layer.cache) * _pairs(new, cached, window)
        case FullAttention():
            return flops + _pair_flops(model, layer.cache) * _pairs(new, cached, top_k)
        case CompressedAttention(window=window, ratio=ratio):
            pairs = _pairs(new, cached, window)
            if ratio:
                pairs += _pairs(new, cached, top_k, ratio)
            return flops + 4 * model.num_heads * layer.cache.head_dim * pairs
        case LatentAttention():
            return flops + _latent_pair_flops(model, layer.cache, decode=new == 1) * _pairs(new, cached, top_k)
        case _:
            elements = conv_elements(layer.cache) + recurrent_elements(layer.cache)
            return flops + FLOPS_PER_STATE_ELEMENT * elements * new


def _pairs(new: int, cached: int, limit: int | None, ratio: int = 1) -> int:
    """Query-key pairs of `new` causal queries behind `cached` tokens with a key for every `ratio` tokens, of which a
    query sees `limit` at most: the sum of min((cached + i) // ratio, limit), i = 1..new.
    """
    return _pairs_up_to(cached + new, limit, ratio) - _pairs_up_to(cached, limit, ratio)


def _pairs_up_to(tokens: int, limit: int | None, ratio: int) -> int:
    growing = tokens if limit is None else min(tokens, (limit + 1) * ratio - 1)
    keys, rest = divmod(growing, ratio)
    return ratio * keys * (keys - 1) // 2 + keys * (rest + 1) + (tokens - growing) * (limit or 0)


def _pair_flops(model: Model, cache: FullAttention) -> int:
    """One query token against one key, all query heads: QK^T and PV."""
    return 2 * model.num_heads * (cache.k_head_dim + cache.v_head_dim)


def _latent_pair_flops(model: Model, cache: LatentAttention, *, decode: bool) -> int:
    """Decode works on the latent itself (absorbed projections); prefill on the heads expanded from it."""
    if decode or cache.qk_nope_head_dim is None or cache.v_head_dim is None:
        return 2 * model.num_heads * (2 * cache.kv_lora_rank + cache.qk_rope_head_dim)
    return 2 * model.num_heads * (cache.qk_nope_head_dim + cache.qk_rope_head_dim + cache.v_head_dim)
