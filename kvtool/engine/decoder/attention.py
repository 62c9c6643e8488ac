"""MHA, MQA and GQA over pages, full or sliding: fused QKV, optional bias, QK norm and RoPE, store, attend."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.catalog.decoder import Decoder
from kvtool.catalog.model import FullAttention, SlidingAttention
from kvtool.engine.decoder.context import StepContext, join
from kvtool.engine.decoder.linear import load_linear
from kvtool.engine.decoder.norm import RmsNorm
from kvtool.engine.weights.source import WeightSource
from kvtool.kernels.blocks import stacked
from kvtool.kernels.fused import Input
from kvtool.kernels.interface import Kernels
from kvtool.kernels.pages import Pages
from kvtool.kernels.rows import Softmax
from kvtool.kernels.weights import Weight


class GroupedQueryAttention:
    """x [T, hidden] -> attention of it, + plus. Writes the K and V of the step's tokens first."""

    def __init__(
        self,
        shape: FullAttention,
        *,
        num_heads: int,
        hidden_size: int,
        decoder: Decoder,
        weights: WeightSource,
        kernels: Kernels,
        prefix: str,
        rotates: bool = True,
    ) -> None:
        self.num_heads, self.kv_heads, self.head_dim = num_heads, shape.kv_heads, shape.k_head_dim
        self.rotates, self.is_local = rotates, isinstance(shape, SlidingAttention)
        self.softmax = Softmax(
            scale=decoder.attention_scale or self.head_dim**-0.5,
            window=shape.window if isinstance(shape, SlidingAttention) else 0,
            softcap=decoder.attention_softcap,
            sinks=weights.tensor(f"{prefix}.sinks", num_heads) if decoder.attention_sinks else None,
        )
        rows = {"q_proj": num_heads, "k_proj": shape.kv_heads, "v_proj": shape.kv_heads}
        tensors = [
            weights.tensor(f"{prefix}.{name}.weight", heads * self.head_dim, hidden_size)
            for name, heads in rows.items()
        ]
        biases = [
            weights.tensor(f"{prefix}.{name}.bias", heads * self.head_dim)
            for name, heads in rows.items()
            if decoder.qkv_bias
        ]
        stored = stacked([weights.blocks(f"{prefix}.{name}.weight") for name in rows])
        self.qkv = kernels.prepare(Weight(torch.cat(tensors), torch.cat(biases) if biases else None, stored=stored))
        width, output_bias = num_heads * self.head_dim, decoder.output_bias
        self.out = load_linear(kernels, weights, f"{prefix}.o_proj", hidden_size, width, bias=output_bias)
        self.qk_norm = self.q_norm = self.k_norm = None
        if decoder.qk_norm_spans_heads:
            self.q_norm, self.k_norm = (
                RmsNorm(weights.tensor(f"{prefix}.{name}.weight", heads * self.head_dim), decoder.norm_eps)
                for name, heads in (("q_norm", num_heads), ("k_norm", shape.kv_heads))
            )
        elif decoder.qk_norm:
            self.qk_norm = RmsNorm(self._stacked_norms(weights, prefix), decoder.norm_eps)

    def _stacked_norms(self, weights: WeightSource, prefix: str) -> Tensor:
        """[HQ + HKV, D]: one weight row per head, so that Q and K are normalised in one pass."""
        q_norm = weights.tensor(f"{prefix}.q_norm.weight", self.head_dim)
        k_norm = weights.tensor(f"{prefix}.k_norm.weight", self.head_dim)
        return torch.cat((q_norm.expand(self.num_heads, -1), k_norm.expand(self.kv_heads, -1)))

    def __call__(self, x: Input, step: StepContext, pages: Pages, plus: Tensor | None = None) -> Tensor:
        qkv = step.linear(x, self.qkv).view(-1, self.num_heads + 2 * self.kv_heads, self.head_dim)
        q = self._split(qkv, step, pages)
        return step.linear(self._attend(q, step, pages).flatten(1), self.out, plus)

    def _split(self, qkv: Tensor, step: StepContext, pages: Pages) -> Tensor:
        """Q and K normalised and turned; K and V written to the pages; Q [T, HQ, D] returned."""
        kernels, slots = step.kernels, step.batch.slots
        turn = step.local_rotation if self.is_local else step.rotation
        rotation = turn if self.rotates else None
        norms, eps = (None, 0.0) if self.qk_norm is None else (self.qk_norm.weight, self.qk_norm.eps)
        if self.q_norm is not None and self.k_norm is not None:  # over all heads of Q, and over those of K
            q, k, v = qkv.flatten(1).split((self.q_norm.size, self.k_norm.size, self.k_norm.size), dim=-1)
            normed = torch.cat((self.q_norm(q, kernels), self.k_norm(k, kernels), v), dim=-1)
            qkv = normed.unflatten(1, (-1, self.head_dim))
        return kernels.split_qkv(qkv, norms, eps, rotation, pages, slots)

    def _attend(self, q: Tensor, step: StepContext, pages: Pages) -> Tensor:
        batch, kernels = step.batch, step.kernels
        decoded = prefilled = None
        if batch.decode:
            decoded = kernels.decode(q[: batch.num_decodes], pages, batch.decode, self.softmax)
        if batch.prefill:
            prefilled = kernels.prefill(q[batch.num_decodes :], pages, batch.prefill, self.softmax)
        return join(decoded, prefilled)
