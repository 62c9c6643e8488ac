"""MLA over pages (DeepSeek-V2, arXiv 2405.04434): the latent and the rotated key part are all that is stored.

Decode absorbs W_UK into the query and W_UV into the output, and attends over the latents themselves. Prefill
decompresses the latents and attends as MHA, which is fewer FLOPs for many queries.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from kvtool.catalog.decoder import Decoder
from kvtool.catalog.model import LatentAttention
from kvtool.engine.decoder.context import StepContext, join
from kvtool.engine.decoder.gathered import Gathered
from kvtool.engine.decoder.linear import load_linear
from kvtool.engine.decoder.norm import RmsNorm
from kvtool.engine.decoder.residual import normed
from kvtool.engine.decoder.rope import yarn_mscale
from kvtool.engine.weights.source import WeightSource
from kvtool.kernels.blocks import Blocks, stacked
from kvtool.kernels.fused import Input
from kvtool.kernels.interface import Kernels
from kvtool.kernels.pages import Pages
from kvtool.kernels.rows import Rows, Softmax
from kvtool.kernels.weights import Weight
from kvtool.system.errors import KvtoolError

_DECOMPRESSED_BYTES = 2**29  # of the keys and values that a prefill holds at once
_LATENT_NORM_EPS = 1e-6  # DeepSeek leaves these two norms at their class default, whatever rms_norm_eps says


class LatentProjection:
    """x [T, hidden] -> q [T, heads, nope + rope], through a low-rank query where the model has one, and the latents
    with their rotary keys [T, R + rope]. Both begin with one product."""

    def __init__(
        self,
        shape: LatentAttention,
        num_heads: int,
        head_dim: int,
        hidden_size: int,
        decoder: Decoder,
        weights: WeightSource,
        kernels: Kernels,
        prefix: str,
    ) -> None:
        rank, turned = shape.q_lora_rank, shape.qk_rope_head_dim if decoder.rope_interleaved else 0
        self.num_heads, self.head_dim = num_heads, head_dim
        width = num_heads * head_dim
        first = ("q_proj", width, False) if rank is None else ("q_a_proj", rank, decoder.qkv_bias)
        last = ("kv_a_proj_with_mqa", shape.kv_lora_rank + shape.qk_rope_head_dim, decoder.qkv_bias)
        parts, stored = [], []
        for name, rows, has_bias in (first, last):
            tensors = [weights.tensor(f"{prefix}.{name}.weight", rows, hidden_size)]
            tensors += [weights.tensor(f"{prefix}.{name}.bias", rows)] if has_bias else []
            heads, of_head = (num_heads, turned) if name == "q_proj" else (1, 0 if name == "q_a_proj" else turned)
            parts.append([_halves_last(tensor, heads, of_head) for tensor in tensors])
            stored.append(_halves_last_of(weights.blocks(f"{prefix}.{name}.weight"), heads, of_head))
        (of_query, *query_bias), (of_latent, *latent_bias) = parts
        self.widths = len(of_query), len(of_latent)
        bias = None
        if latent_bias:
            bias = torch.cat((*(query_bias or [latent_bias[0].new_zeros(len(of_query))]), *latent_bias))
        self.inner = kernels.prepare(Weight(torch.cat((of_query, of_latent)), bias, stored=stacked(stored)))
        self.norm = self.up = None
        if rank is not None:
            self.norm = RmsNorm(weights.tensor(f"{prefix}.q_a_layernorm.weight", rank), _LATENT_NORM_EPS)
            name = f"{prefix}.q_b_proj.weight"
            up = _halves_last(weights.tensor(name, width, rank), num_heads, turned)
            self.up = kernels.prepare(Weight(up, stored=_halves_last_of(weights.blocks(name), num_heads, turned)))

    def __call__(self, x: Input, step: StepContext) -> tuple[Tensor, Tensor]:
        query, latent = step.linear(x, self.inner).split(self.widths, dim=1)
        if self.norm is not None and self.up is not None:
            query = step.linear(normed(query, self.norm, step), self.up)
        return query.view(-1, self.num_heads, self.head_dim), latent


class MultiHeadLatentAttention:
    """x [T, hidden] -> attention of it, + plus. Writes [latent, rotated key] of the tokens first."""

    def __init__(
        self,
        shape: LatentAttention,
        *,
        num_heads: int,
        hidden_size: int,
        decoder: Decoder,
        weights: WeightSource,
        kernels: Kernels,
        prefix: str,
    ) -> None:
        if shape.qk_nope_head_dim is None or shape.v_head_dim is None:
            raise KvtoolError("running MLA needs qk_nope_head_dim and v_head_dim, which this model does not say")
        self.nope, self.rope, self.rank = shape.qk_nope_head_dim, shape.qk_rope_head_dim, shape.kv_lora_rank
        self.num_heads, self.v_head_dim = num_heads, shape.v_head_dim
        self.softmax = Softmax(_softmax_scale(decoder, self.nope + self.rope))
        self.inner = LatentProjection(
            shape, num_heads, self.nope + self.rope, hidden_size, decoder, weights, kernels, prefix
        )
        norm = weights.tensor(f"{prefix}.kv_a_layernorm.weight", self.rank)
        self.latent_norm = RmsNorm(norm, _LATENT_NORM_EPS)
        up = weights.tensor(f"{prefix}.kv_b_proj.weight", num_heads * (self.nope + self.v_head_dim), self.rank)
        self.up = up.unflatten(0, (num_heads, -1))
        # W_UK [H, nope, R] and W_UV [H, v, R]: the two halves of each head's rows of kv_b_proj.
        self.w_uk, w_uv = self.up.split((self.nope, self.v_head_dim), dim=1)
        self.w_uv = w_uv.transpose(1, 2)
        width, output_bias = num_heads * self.v_head_dim, decoder.output_bias
        self.out = load_linear(kernels, weights, f"{prefix}.o_proj", hidden_size, width, bias=output_bias)

    def __call__(self, x: Input, step: StepContext, pages: Pages, plus: Tensor | None = None) -> Tensor:
        absorbed, q = self._queries(x, step, pages)
        decode, prefill = step.batch.decode, step.batch.prefill
        decoded = self._decode(absorbed, decode, pages, step.kernels) if decode else None
        prefilled = None
        if prefill:
            assert step.gathered is not None
            prefilled = decompressed_prefill(q, self.up, prefill, step.gathered, pages, self.softmax, step.kernels)
        return step.linear(join(decoded, prefilled).flatten(1), self.out, plus)

    def _queries(self, x: Input, step: StepContext, pages: Pages) -> tuple[Tensor, Tensor]:
        """Absorbed queries [D, H, R + rope] of the D decode rows and q [T - D, H, nope + rope] of the others; the
        latents of all rows go to the pages."""
        norm, num_decodes = self.latent_norm, step.batch.num_decodes
        q, latent = self.inner(x, step)
        if step.fused is not None and num_decodes == len(q):
            given = step.rotation, pages, step.batch.slots, self.w_uk
            return step.fused.absorbed(q, latent, norm.weight, norm.eps, *given), q[:0]
        absorbed = step.kernels.split_latent(
            q, latent, norm.weight, norm.eps, step.rotation, pages, step.batch.slots, num_decodes
        )
        if num_decodes:
            q_nope = q[:num_decodes, :, : self.nope].transpose(0, 1)
            torch.bmm(q_nope, self.w_uk, out=absorbed[..., : self.rank].transpose(0, 1))
        return absorbed, q[num_decodes:]

    def _decode(self, absorbed: Tensor, rows: Rows, pages: Pages, kernels: Kernels) -> Tensor:
        attended = kernels.decode(absorbed, pages, rows, self.softmax)
        out = absorbed.new_empty(len(absorbed), self.num_heads, self.v_head_dim)
        torch.bmm(attended.transpose(0, 1), self.w_uv, out=out.transpose(0, 1))
        return out


def decompressed_prefill(
    q: Tensor, up: Tensor, rows: Rows, copied: Gathered, pages: Pages, softmax: Softmax, kernels: Kernels
) -> Tensor:
    """q [T, H, nope + rope] over pages of latents, which up [H, nope + v, R] decompresses -> [T, H, v].

    The latents of all tokens in use are copied out of their pages, and decompressed for as many heads at a time as fit
    in _DECOMPRESSED_BYTES, of one head at least.
    """
    num_heads, width, rank = up.shape
    latents = kernels.gather(pages, copied.pages, q.dtype).view(-1, copied.block_size, pages.k.shape[2])
    nope = q.shape[2] - (latents.shape[2] - rank)
    rows = replace(rows, block_tables=copied.block_tables)
    parts = []
    for heads in _head_blocks(num_heads, width * latents[..., 0].numel() * q.element_size()):
        k, v = _decompressed(latents[..., :rank], up[heads]).split((nope, width - nope), dim=-1)
        decompressed = Pages(k, v, k_rope=latents[..., rank:])
        parts.append(kernels.prefill(q[:, heads], decompressed, rows, softmax))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _decompressed(latents: Tensor, up: Tensor) -> Tensor:
    """latents [n, B, R] and up [heads, nope + v, R] -> [n, B, heads, nope + v]."""
    return linear(latents.flatten(0, 1), up.flatten(0, 1)).view(*latents.shape[:2], *up.shape[:2])


def _head_blocks(num_heads: int, head_bytes: int) -> list[slice]:
    """All heads, in blocks of at most _DECOMPRESSED_BYTES."""
    block = max(1, min(num_heads, _DECOMPRESSED_BYTES // head_bytes))
    return [slice(first, min(first + block, num_heads)) for first in range(0, num_heads, block)]


def _softmax_scale(decoder: Decoder, head_dim: int) -> float:
    """1/sqrt of the uncompressed head, times YaRN's temperature squared where the model scales all dimensions."""
    scaling = decoder.rope_scaling
    mscale = yarn_mscale(scaling.factor, scaling.mscale_all_dim) if scaling and scaling.mscale_all_dim else 1.0
    return float(head_dim**-0.5 * mscale**2)


def _halves_last(rows: Tensor, heads: int, rope_dim: int) -> Tensor:
    """Reorder the last `rope_dim` rows of each head of [heads x n, ...] from pairs to halves, which is how `rotate`
    turns them; 0: as they are.

    The same reordering on Q and K leaves every dot product as it is.
    """
    if not rope_dim:
        return rows
    by_head = rows.unflatten(0, (heads, -1))
    plain, turned = by_head[:, :-rope_dim], by_head[:, -rope_dim:]
    return torch.cat((plain, turned[:, 0::2], turned[:, 1::2]), dim=1).flatten(0, 1)


def _halves_last_of(stored: Blocks | None, heads: int, rope_dim: int) -> Blocks | None:
    """The same reordering of what a weight was made of: whole rows move, whose codes and scales move with them."""
    return None if stored is None else stored.map(partial(_halves_last, heads=heads, rope_dim=rope_dim))
