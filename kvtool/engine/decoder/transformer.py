"""The decoder: embedding, layers, final norm, logits. Built from a catalogue Model and a source of weights."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding

from kvtool.catalog.model import Decoder, FullAttention, LatentAttention, Layer, Model
from kvtool.engine.batch import StepBatch
from kvtool.engine.decoder.attention import GroupedQueryAttention
from kvtool.engine.decoder.latent_attention import MultiHeadLatentAttention
from kvtool.engine.decoder.linear import Linear
from kvtool.engine.decoder.mlp import EvenRouter, GatedMlp, LearnedRouter, MoeMlp
from kvtool.engine.decoder.norm import RmsNorm
from kvtool.engine.decoder.rope import Rope
from kvtool.engine.decoder.step import StepContext
from kvtool.engine.pool import LayerCache
from kvtool.engine.weights.source import WeightSource
from kvtool.errors import KvtoolError
from kvtool.kernels import Kernels

_EXPERT_NAMES = {"mixtral": ("block_sparse_moe", ("w1", "w3", "w2"))}


class DecoderLayer:
    """x + attention(norm x), then + mlp(norm ·)."""

    def __init__(self, model: Model, decoder: Decoder, index: int, weights: WeightSource) -> None:
        prefix = f"model.layers.{index}"
        hidden, eps = model.hidden_size, decoder.norm_eps
        self.input_norm = RmsNorm(weights.tensor(f"{prefix}.input_layernorm.weight", hidden), eps)
        self.mlp_norm = RmsNorm(weights.tensor(f"{prefix}.post_attention_layernorm.weight", hidden), eps)
        self.attention = _attention(model.layers[index], model, decoder, weights, f"{prefix}.self_attn")
        self.mlp = _mlp(model, decoder, index, weights, prefix)

    def __call__(self, x: Tensor, step: StepContext, cache: LayerCache) -> Tensor:
        normed, fused = self.input_norm(x), step.kernels.fused
        if fused is None:
            x = self.attention(normed, step, cache, plus=x)
            normed = self.mlp_norm(x)
        else:
            attended = self.attention(normed, step, cache, plus=None)
            normed, x = fused.add_rms_norm(attended, x, self.mlp_norm.weight, self.mlp_norm.eps)
        return self.mlp(normed, step.batch, plus=x, fused=fused)


class Transformer:
    """Token ids of a step in, logits of its sampled rows out; K/V of all its tokens goes into the pool."""

    def __init__(
        self,
        model: Model,
        weights: WeightSource,
        *,
        max_positions: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        decoder = runnable_decoder(model)
        assert model.vocab_size is not None
        self.model = model
        self.embedding = weights.tensor("model.embed_tokens.weight", model.vocab_size, model.hidden_size)
        self.layers = [DecoderLayer(model, decoder, index, weights) for index in range(model.num_layers)]
        self.norm = RmsNorm(weights.tensor("model.norm.weight", model.hidden_size), decoder.norm_eps)
        tied = model.tie_word_embeddings
        head = self.embedding if tied else weights.tensor("lm_head.weight", model.vocab_size, model.hidden_size)
        self.head = Linear(head)
        self.rope = Rope(decoder, rotary_dim(model), max_positions, dtype=dtype, device=device)

    @torch.inference_mode()
    def __call__(self, batch: StepBatch, caches: list[LayerCache], kernels: Kernels) -> Tensor:
        """Logits [len(sample_rows), vocab]. `caches` has one entry a layer."""
        step = StepContext(batch, kernels, self.rope.at(batch.positions))
        x = embedding(batch.token_ids, self.embedding)
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, step, cache)
        return self.head(self.norm(x[batch.sample_rows]))


def runnable_decoder(model: Model) -> Decoder:
    """The model's decoder facts. Raises KvtoolError for a model that the engine has no decoder for."""
    if model.decoder is None or model.vocab_size is None:
        raise KvtoolError(
            f"the engine does not run {model.id} (architecture {model.architecture!r}): `kvtool size` can size it"
        )
    return model.decoder


def rotary_dim(model: Model) -> int:
    """How many dimensions of a head are rotated."""
    cache = model.layers[0].cache
    if isinstance(cache, LatentAttention):
        return cache.qk_rope_head_dim
    assert isinstance(cache, FullAttention)
    return cache.k_head_dim


def _attention(
    layer: Layer, model: Model, decoder: Decoder, weights: WeightSource, prefix: str
) -> GroupedQueryAttention | MultiHeadLatentAttention:
    shape = layer.cache
    common = {"num_heads": model.num_heads, "hidden_size": model.hidden_size}
    if isinstance(shape, LatentAttention):
        return MultiHeadLatentAttention(shape, **common, decoder=decoder, weights=weights, prefix=prefix)
    if isinstance(shape, FullAttention):
        return GroupedQueryAttention(shape, **common, decoder=decoder, weights=weights, prefix=prefix)
    raise KvtoolError(f"the engine does not run layers of kind {type(shape).__name__}: `kvtool size` can size them")


def _mlp(model: Model, decoder: Decoder, index: int, weights: WeightSource, prefix: str) -> GatedMlp | MoeMlp:
    hidden, activation = model.hidden_size, decoder.activation
    moe = model.moe
    if moe is None or not moe.is_sparse(index):
        if model.intermediate_size is None:
            raise KvtoolError(f"the engine cannot run {model.id}: its intermediate_size is not known")
        return GatedMlp(hidden, model.intermediate_size, activation, weights, f"{prefix}.mlp", biased=decoder.mlp_bias)
    block, names = _EXPERT_NAMES.get(decoder.family, ("mlp", ("gate_proj", "up_proj", "down_proj")))
    experts = [
        GatedMlp(hidden, moe.intermediate_size, activation, weights, f"{prefix}.{block}.experts.{expert}", names)
        for expert in range(moe.num_experts)
    ]
    shared = moe.shared_intermediate_size
    assert decoder.router is not None
    return MoeMlp(
        moe,
        EvenRouter(moe, index)
        if weights.even_routing
        else LearnedRouter(moe, decoder.router, hidden, weights, f"{prefix}.{block}.gate"),
        experts,
        GatedMlp(hidden, shared, activation, weights, f"{prefix}.mlp.shared_experts") if shared else None,
    )
