"""The decoder: embedding, layers, final norm, logits. Built from a catalogue Model and a source of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from kvtool.catalog.decoder import Decoder
from kvtool.catalog.model import FullAttention, LatentAttention, Model
from kvtool.engine.batch import StepBatch
from kvtool.engine.decoder.attention import GroupedQueryAttention
from kvtool.engine.decoder.context import StepContext, tensor_of
from kvtool.engine.decoder.experts import load_experts
from kvtool.engine.decoder.gathered import Gathered, gathered
from kvtool.engine.decoder.latent_attention import LatentProjection, MultiHeadLatentAttention
from kvtool.engine.decoder.mlp import GatedMlp, Mlp, load_mlp
from kvtool.engine.decoder.moe import EvenRouter, LearnedRouter, MoeMlp
from kvtool.engine.decoder.norm import load_norm
from kvtool.engine.decoder.part import Alone, Communicator
from kvtool.engine.decoder.residual import Residual, joined, plus_of
from kvtool.engine.decoder.rope import Rope
from kvtool.engine.weights.source import WeightSource
from kvtool.kernels.fused import FusedKernels
from kvtool.kernels.interface import Kernels
from kvtool.kernels.pages import Pages
from kvtool.kernels.weights import GatedWeight, Weight
from kvtool.system.errors import KvtoolError

# The norms before and after attention, and before and after the MLP, as Llama, OLMo 2 and Gemma 2 call them.
_NORMS: dict[str, tuple[str | None, str | None, str | None, str | None]] = {
    "before": ("input_layernorm", None, "post_attention_layernorm", None),
    "after": (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "around": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
}


class DecoderLayer:
    """x + attention(x), then + mlp(·), with norms before them, after them, or both."""

    def __init__(self, model: Model, decoder: Decoder, index: int, weights: WeightSource, kernels: Kernels) -> None:
        prefix = f"model.layers.{index}"
        self.attention_in, self.attention_out, self.mlp_in, self.mlp_out = (
            load_norm(decoder, model.hidden_size, weights, f"{prefix}.{name}") if name else None
            for name in _NORMS[decoder.norms]
        )
        self.attention = _attention(index, model, decoder, weights, kernels, f"{prefix}.self_attn")
        self.mlp = _mlp(model, decoder, index, weights, kernels, f"{prefix}.mlp")

    def __call__(self, stream: Residual, step: StepContext, pages: Pages) -> Residual:
        others = step.others
        normed, x = stream.normed(self.attention_in, step)
        plus = plus_of(x, self.attention_out, step)
        attended = others.attended(self.attention(normed, step, pages, plus))
        normed, x = joined(x, attended, self.attention_out, plus).normed(self.mlp_in, step)
        plus = plus_of(x, self.mlp_out, step)
        given = normed if step.fused is not None else others.gathered(tensor_of(normed))
        return joined(x, others.reduced(self.mlp(given, step, plus)), self.mlp_out, plus)


class Transformer:
    """Token ids of a step in, logits of its sampled rows out; K/V of all its tokens goes into the pool."""

    def __init__(
        self,
        model: Model,
        weights: WeightSource,
        kernels: Kernels,
        *,
        max_positions: int,
        dtype: torch.dtype,
        device: torch.device,
        others: Communicator | None = None,
    ) -> None:
        """`model` is what this process has of one, and `others` have the rest of it."""
        decoder = runnable_decoder(model)
        assert model.vocab_size is not None
        hidden = model.hidden_size
        self.model = model
        self.others = others or Alone()
        self.after_layer: Callable[[int], None] | None = None  # told of a layer whose K and V are in the pool
        self.logit_softcap = decoder.logit_softcap
        self.embedding = Embedding(model, decoder, weights, max_positions)
        self.layers = [DecoderLayer(model, decoder, index, weights, kernels) for index in range(model.num_layers)]
        self.norm = load_norm(decoder, hidden, weights, "model.norm")
        tied = model.tie_word_embeddings
        name = "model.embed_tokens.weight" if tied else "lm_head.weight"
        head = self.embedding.tokens if tied else weights.tensor(name, model.vocab_size, hidden)
        self.head = kernels.prepare(Weight(head, stored=weights.blocks(name)))
        rotary = (rotary_dim(model, decoder), max_positions)
        self.rope = Rope(decoder.rope_theta, decoder.rope_scaling, *rotary, dtype=dtype, device=device)
        local_theta = decoder.local_rope_theta
        self.local_rope = Rope(local_theta, None, *rotary, dtype=dtype, device=device) if local_theta else self.rope

    @property
    def capturable(self) -> bool:
        """Whether a decode step never waits for the device, so that it can be part of a CUDA graph."""
        return all(layer.mlp.capturable for layer in self.layers)

    def saved_bytes(self, num_rows: int) -> int:
        """Bytes of weights that a step of so many rows does not read, as they lie here in fewer bits."""
        savings = [weight.saving for weight in self._weights()]
        return sum(saving.bytes for saving in savings if saving is not None and num_rows <= saving.rows)

    def weights_read(self) -> list[Tensor]:
        """What a step of one row reads of dense weights, in its order, as far as others can read it too."""
        reads = ((held.weight,) if held.packed is None else held.packed.read for held in self._weights())
        return [weight for read in reads for weight in read]

    def _weights(self) -> Iterator[Weight | GatedWeight]:
        """The dense ones, in the order in which a step reads them."""
        for layer in self.layers:
            yield from _weights_of(layer.attention)
            yield from _weights_of(layer.mlp)
        yield self.head

    @torch.inference_mode()
    def __call__(
        self,
        batch: StepBatch,
        layers: list[Pages],
        kernels: Kernels,
        *,
        wait: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Logits [sampled rows, vocab]. `layers` are the pages of each layer; where some may still be on
        their way, `wait(n)` is called before those of layer n are used."""
        return self.finish(*self.start(batch, layers, kernels), layers, wait=wait)

    def start(self, batch: StepBatch, layers: list[Pages], kernels: Kernels) -> tuple[Tensor, StepContext]:
        """What the first layer gets: x [T, hidden], and what all layers share."""
        rotation = self.rope.at(batch.positions)
        local = rotation if self.local_rope is self.rope else self.local_rope.at(batch.positions)
        copied, tokens = self._gathered(batch, layers[0], kernels), self.others.tokens(batch)
        fused = self._fused(batch, kernels)
        step = StepContext(batch, kernels, rotation, local, self.others, tokens, copied, fused)
        return self.embedding(batch, self.others), step

    def finish(
        self, x: Tensor, step: StepContext, layers: list[Pages], *, wait: Callable[[int], None] | None = None
    ) -> Tensor:
        """The logits, out of what `start` gave."""
        return self._logits(self._through(x, step, layers, wait), step)

    @torch.inference_mode()
    def likeliest(self, batch: StepBatch, layers: list[Pages], kernels: Kernels) -> Tensor:
        """Where the largest logit of each sampled row stands, int64 [sampled rows], the first of equals."""
        x, step = self.start(batch, layers, kernels)
        stream = self._through(x, step, layers)
        if step.fused is None or self.logit_softcap:  # whose rounding makes equals of what was none
            return kernels.likeliest(self._logits(stream, step))
        return step.fused.likeliest(stream.normed(self.norm, step)[0], self.head)

    def _through(
        self, x: Tensor, step: StepContext, layers: list[Pages], wait: Callable[[int], None] | None = None
    ) -> Residual:
        """The stream behind all layers, of the sampled rows."""
        stream, rows = Residual(x), step.batch.sample_rows
        for index, (layer, pages) in enumerate(zip(self.layers, layers, strict=True)):
            if wait is not None:
                wait(index)
            stream = layer(stream, step, pages)
            if self.after_layer is not None:
                self.after_layer(index)
        return stream if rows is None else stream.rows(rows)

    def _logits(self, stream: Residual, step: StepContext) -> Tensor:
        logits = step.linear(stream.normed(self.norm, step)[0], self.head)
        return logits.div_(self.logit_softcap).tanh_().mul_(self.logit_softcap) if self.logit_softcap else logits

    def _fused(self, batch: StepBatch, kernels: Kernels) -> FusedKernels | None:
        """Of few rows, where nobody else has a part of what is added."""
        fused = kernels.fused
        few = fused is not None and len(batch.token_ids) <= fused.most_rows
        return fused if few and isinstance(self.others, Alone) else None

    def _gathered(self, batch: StepBatch, pages: Pages, kernels: Kernels) -> Gathered | None:
        """The prefill rows of MLA, which are decompressed side by side, in blocks of a tile of the kernel."""
        if batch.prefill is None or not isinstance(self.model.layers[0].cache, LatentAttention):
            return None
        return gathered(batch.prefill_pages, pages.block_size, kernels.tile_tokens, pages.k.device)


class Embedding:
    """Token ids and positions of a step -> x [T, hidden]."""

    def __init__(self, model: Model, decoder: Decoder, weights: WeightSource, max_positions: int) -> None:
        assert model.vocab_size is not None
        self.tokens = weights.tensor("model.embed_tokens.weight", model.vocab_size, model.hidden_size)
        self.scale = torch.tensor(model.hidden_size**0.5, dtype=self.tokens.dtype) if decoder.scaled_embedding else None
        self.offset = decoder.position_offset
        if self.offset is not None:
            longest = model.max_position_embeddings or max_positions
            if max_positions > longest:
                raise KvtoolError(
                    f"{model.id} has {longest} learned positions: prompt and output of {max_positions} are too long"
                )
            rows = longest + self.offset
            self.positions = weights.tensor("model.embed_positions.weight", rows, model.hidden_size)

    def __call__(self, batch: StepBatch, others: Communicator) -> Tensor:
        x = others.embedded(batch.token_ids, self.tokens)
        if self.scale is not None:
            x = x * self.scale
        return x if self.offset is None else x + embedding(batch.positions + self.offset, self.positions)


def _weights_of(part: object) -> Iterator[Weight | GatedWeight]:
    """What a part of a layer multiplies by, and what the parts that it is made of do."""
    for held in vars(part).values():
        if isinstance(held, Weight | GatedWeight):
            yield held
        elif isinstance(held, LatentProjection | GatedMlp | Mlp):
            yield from _weights_of(held)


def runnable_decoder(model: Model) -> Decoder:
    """The model's decoder facts. Raises KvtoolError for a model that the engine has no decoder for, or not all of."""
    if model.decoder is None or model.vocab_size is None:
        raise KvtoolError(
            f"the engine does not run {model.id} (architecture {model.architecture!r}): `kvtool size` can size it"
        )
    if model.decoder.refused is not None:
        raise KvtoolError(
            f"the engine does not run {model.id}, which has {model.decoder.refused}: `kvtool size` can size it"
        )
    return model.decoder


def rotary_dim(model: Model, decoder: Decoder) -> int:
    """How many dimensions of a head are rotated."""
    cache = model.layers[0].cache
    if isinstance(cache, LatentAttention):
        return cache.qk_rope_head_dim
    assert isinstance(cache, FullAttention)
    return int(cache.k_head_dim * decoder.rotary_fraction)


def _attention(
    index: int, model: Model, decoder: Decoder, weights: WeightSource, kernels: Kernels, prefix: str
) -> GroupedQueryAttention | MultiHeadLatentAttention:
    shape = model.layers[index].cache
    parts: dict[str, Any] = {"decoder": decoder, "weights": weights, "kernels": kernels, "prefix": prefix}
    parts |= {"num_heads": model.num_heads, "hidden_size": model.hidden_size}
    if isinstance(shape, LatentAttention):
        return MultiHeadLatentAttention(shape, **parts)
    if isinstance(shape, FullAttention):
        return GroupedQueryAttention(shape, **parts, rotates=decoder.rotates(index))
    raise KvtoolError(f"the engine does not run layers of kind {type(shape).__name__}: `kvtool size` can size them")


def _mlp(
    model: Model, decoder: Decoder, index: int, weights: WeightSource, kernels: Kernels, prefix: str
) -> GatedMlp | Mlp | MoeMlp:
    hidden, moe = model.hidden_size, model.moe
    if moe is None or not moe.is_sparse(index):
        if model.intermediate_size is None:
            raise KvtoolError(f"the engine cannot run {model.id}: its intermediate_size is not known")
        return load_mlp(hidden, model.intermediate_size, decoder, weights, kernels, prefix)
    assert decoder.router is not None
    router = (
        EvenRouter(moe, index)
        if weights.even_routing
        else LearnedRouter(moe, decoder.router, hidden, weights, f"{prefix}.gate")
    )
    experts = kernels.prepare(load_experts(hidden, moe, decoder, weights, f"{prefix}.experts"))
    width, name = moe.shared_intermediate_size, f"{prefix}.shared_experts"
    return MoeMlp(router, experts, load_mlp(hidden, width, decoder, weights, kernels, name) if width else None)
