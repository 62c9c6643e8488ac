"""MLA over pages (DeepSeek-V2, arXiv 2405.04434): the latent and the rotated key part are all that is stored.

Decode absorbs W_UK into the query and W_UV into the output, and attends over the latents themselves. Prefill
decompresses the latents of a sequence once and attends as MHA, which is fewer FLOPs for many queries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvtool.catalog.decoder import Decoder
from kvtool.catalog.model import LatentAttention
from kvtool.engine.batch import Rows
from kvtool.engine.decoder.linear import Linear
from kvtool.engine.decoder.norm import RmsNorm
from kvtool.engine.decoder.rope import rotate, yarn_mscale
from kvtool.engine.decoder.step import StepContext, join
from kvtool.engine.pool import LayerCache
from kvtool.engine.weights.source import WeightSource
from kvtool.errors import KvtoolError
from kvtool.kernels import Kernels, StepKernels
from kvtool.kernels.dense import causal_attention, tokens_of

_LATENT_NORM_EPS = 1e-6  # DeepSeek leaves these two norms at their class default, whatever rms_norm_eps says


class LatentQueryProjection:
    """x [T, hidden] -> q [T, heads, nope + rope], through a low-rank query where the model has one."""

    def __init__(
        self,
        shape: LatentAttention,
        num_heads: int,
        head_dim: int,
        hidden_size: int,
        decoder: Decoder,
        weights: WeightSource,
        prefix: str,
    ) -> None:
        self.num_heads = num_heads
        rank = shape.q_lora_rank
        self.rank = rank
        if rank is None:
            last = weights.tensor(f"{prefix}.q_proj.weight", num_heads * head_dim, hidden_size)
        else:
            bias = weights.tensor(f"{prefix}.q_a_proj.bias", rank) if decoder.qkv_bias else None
            self.down = Linear(weights.tensor(f"{prefix}.q_a_proj.weight", rank, hidden_size), bias)
            self.norm = RmsNorm(weights.tensor(f"{prefix}.q_a_layernorm.weight", rank), _LATENT_NORM_EPS)
            last = weights.tensor(f"{prefix}.q_b_proj.weight", num_heads * head_dim, rank)
        per_head = last.unflatten(0, (num_heads, head_dim))
        if decoder.rope_interleaved:
            per_head = _halves_last(per_head, shape.qk_rope_head_dim)
        self.up = Linear(per_head.flatten(0, 1))

    def __call__(self, x: Tensor, fused: StepKernels | None) -> Tensor:
        if self.rank is not None:
            x = self.norm(self.down(x, fused=fused))
        return self.up(x, fused=fused).view(len(x), self.num_heads, -1)


class MultiHeadLatentAttention:
    """x [T, hidden] -> attention of it (+ plus [T, hidden]). Writes [latent, rotated key] of the tokens first."""

    def __init__(
        self,
        shape: LatentAttention,
        *,
        num_heads: int,
        hidden_size: int,
        decoder: Decoder,
        weights: WeightSource,
        prefix: str,
    ) -> None:
        if shape.qk_nope_head_dim is None or shape.v_head_dim is None:
            raise KvtoolError("running MLA needs qk_nope_head_dim and v_head_dim, which this model does not say")
        self.nope, self.rope, self.rank = shape.qk_nope_head_dim, shape.qk_rope_head_dim, shape.kv_lora_rank
        self.num_heads, self.v_head_dim = num_heads, shape.v_head_dim
        self.scale = _softmax_scale(decoder, self.nope + self.rope)
        self.query = LatentQueryProjection(
            shape, num_heads, self.nope + self.rope, hidden_size, decoder, weights, prefix
        )
        self.latent = self._latent_projection(hidden_size, decoder, weights, f"{prefix}.kv_a_proj_with_mqa")
        self.latent_norm = RmsNorm(weights.tensor(f"{prefix}.kv_a_layernorm.weight", self.rank), _LATENT_NORM_EPS)
        up = weights.tensor(f"{prefix}.kv_b_proj.weight", num_heads * (self.nope + self.v_head_dim), self.rank)
        self.decompress = Linear(up)
        # W_UK [H, nope, R] and W_UV [H, v, R]: the two halves of each head's rows of kv_b_proj.
        self.w_uk, w_uv = up.unflatten(0, (num_heads, -1)).split((self.nope, self.v_head_dim), dim=1)
        self.w_uv = w_uv.transpose(1, 2)
        self.out = Linear(
            weights.tensor(f"{prefix}.o_proj.weight", hidden_size, num_heads * self.v_head_dim),
            weights.tensor(f"{prefix}.o_proj.bias", hidden_size) if decoder.output_bias else None,
        )

    def _latent_projection(self, hidden_size: int, decoder: Decoder, weights: WeightSource, name: str) -> Linear:
        width = self.rank + self.rope
        weight = weights.tensor(f"{name}.weight", width, hidden_size)
        bias = weights.tensor(f"{name}.bias", width) if decoder.qkv_bias else None
        if decoder.rope_interleaved:
            weight = _halves_last(weight[None], self.rope)[0]
            bias = None if bias is None else _halves_last(bias[None], self.rope)[0]
        return Linear(weight, bias)

    def __call__(self, x: Tensor, step: StepContext, cache: LayerCache, plus: Tensor | None) -> Tensor:
        q_nope, q_rope = self.query(x, step.kernels.fused).split((self.nope, self.rope), dim=-1)
        q_rope = rotate(q_rope, step.rotation)
        latent, k_rope = self.latent(x, fused=step.kernels.fused).split((self.rank, self.rope), dim=-1)
        k_rope = rotate(k_rope.unsqueeze(1), step.rotation).squeeze(1)
        rows = torch.cat((self.latent_norm(latent), k_rope), dim=-1)
        step.kernels.store_latent(rows, cache.k, step.batch.slots, scale=cache.k_scale)
        decode, prefill = step.batch.decode, step.batch.prefill
        num_decodes = decode.num_tokens if decode else 0
        decoded = (
            self._decode(q_nope[:num_decodes], q_rope[:num_decodes], decode, cache, step.kernels) if decode else None
        )
        prefilled = self._prefill(q_nope[num_decodes:], q_rope[num_decodes:], prefill, cache) if prefill else None
        return self.out(join(decoded, prefilled).flatten(1), plus, step.kernels.fused)

    def _decode(self, q_nope: Tensor, q_rope: Tensor, rows: Rows, cache: LayerCache, kernels: Kernels) -> Tensor:
        absorbed = torch.bmm(q_nope.transpose(0, 1), self.w_uk).transpose(0, 1)  # [S, H, R]
        attended = kernels.mla_decode(
            torch.cat((absorbed, q_rope), dim=-1),
            cache.k,
            rows.block_tables,
            rows.seq_lens,
            latent_dim=self.rank,
            scale=self.scale,
            cache_scale=cache.k_scale,
        )
        return torch.bmm(attended.transpose(0, 1), self.w_uv).transpose(0, 1)  # [S, H, v]

    def _prefill(self, q_nope: Tensor, q_rope: Tensor, rows: Rows, cache: LayerCache) -> Tensor:
        q = torch.cat((q_nope, q_rope), dim=-1)
        starts = rows.query_starts.tolist()
        attended = []
        for index, (table, seq_len) in enumerate(zip(rows.block_tables.tolist(), rows.seq_lens.tolist(), strict=True)):
            stored = tokens_of(cache.k, table, 0, seq_len, dtype=q.dtype, scale=cache.k_scale)
            k, v = self._decompressed(stored)
            attended.append(causal_attention(q[starts[index] : starts[index + 1]], k, v, scale=self.scale))
        return torch.cat(attended)

    def _decompressed(self, stored: Tensor) -> tuple[Tensor, Tensor]:
        """Latent rows [L, R+E] -> k [L, H, nope + rope], v [L, H, v]."""
        latent, k_rope = stored.split((self.rank, self.rope), dim=-1)
        heads = self.decompress(latent).unflatten(-1, (self.num_heads, -1))
        k_nope, v = heads.split((self.nope, self.v_head_dim), dim=-1)
        shared = k_rope.unsqueeze(1).expand(-1, self.num_heads, -1)
        return torch.cat((k_nope, shared), dim=-1), v


def _softmax_scale(decoder: Decoder, head_dim: int) -> float:
    """1/sqrt of the uncompressed head, times YaRN's temperature squared where the model scales all dimensions."""
    scaling = decoder.rope_scaling
    mscale = yarn_mscale(scaling.factor, scaling.mscale_all_dim) if scaling and scaling.mscale_all_dim else 1.0
    return float(head_dim**-0.5 * mscale**2)


def _halves_last(rows: Tensor, rope_dim: int) -> Tensor:
    """Reorder the last `rope_dim` output rows of [n, out, ...] from pairs to halves, which is how `rotate` turns them.

    The same reordering on Q and K leaves every dot product as it is.
    """
    plain, turned = rows[:, :-rope_dim], rows[:, -rope_dim:]
    return torch.cat((plain, turned[:, 0::2], turned[:, 1::2]), dim=1)
