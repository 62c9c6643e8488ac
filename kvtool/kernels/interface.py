"""What kernels promise: shapes, units and meaning of every operation, whoever computes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Scale = float | Tensor


# What a gate kernel computes, by the names that checkpoints use.
GATES = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "clamped_swiglu": "clamped_swiglu",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertWeights:
    """E experts in one piece: gate over up [E,2I,H] and down [E,H,I], with their biases [E,2I] and [E,H].

    `activation` is one of `GATES`; alpha and limit are those of "clamped_swiglu".
    """

    gate_up: Tensor
    down: Tensor
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    activation: str
    alpha: float = 0.0
    limit: float = 0.0


class StepKernels(Protocol):
    """A decoder step but for attention: products with weights, and what lies between, one kernel each.

    T tokens, hidden size n.
    """

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
        """x [T,K], weight [N,K], bias [N], plus [T,N] -> x W^T + bias + plus [T,N]."""

    def experts(
        self, x: Tensor, weights: ExpertWeights, chosen: Tensor, shares: Tensor, plus: Tensor | None = None
    ) -> Tensor:
        """x [T,H] through the experts `chosen` [T,k] for each token, times `shares` [T,k], added up, + plus [T,H].

        An expert is down(activation(gate x) * up x). Nothing is asked of the device, so a graph can hold it.
        """

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor | None, x_weight: Tensor | None = None, *, eps: float
    ) -> tuple[Tensor, Tensor]:
        """x and residual [T,n] -> (RMSNorm of their sum by weight [n], the sum), x normalised first by x_weight [n].

        Without a weight nothing is normalised there. Weights may be wider than x: there is one rounding, the last.
        """

    def split_qkv(
        self,
        qkv: Tensor,
        norms: Tensor | None,
        eps: float,
        rotation: tuple[Tensor, Tensor],
        k_cache: Tensor,
        v_cache: Tensor,
        slots: Tensor,
        *,
        k_scale: Scale = 1.0,
        v_scale: Scale = 1.0,
    ) -> Tensor:
        """The heads [Q | K | V] of qkv [T,HQ+2*HKV,D] -> q [T,HQ,D]; K and V go to the cache, as `store_kv` does.

        Q and K are normalised first, by norms [HQ+HKV,D] where there are any, and turned: x cos + roll(x, D/2) sin for
        `rotation` = (cos, signed sin), [T,1,D] each.
        """

    def place(self, positions: Tensor, block_tables: Tensor, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Where decode rows stand: positions [S] int64 (-1: a padding row) -> (the same with 0 for padding, slots [S]
        int64 with -1, seq_lens [S] int32 with 0). In place, positions go on by one; padding stays.
        """

    def split_latent(
        self,
        q: Tensor,
        latent: Tensor,
        norm: Tensor,
        eps: float,
        rotation: tuple[Tensor, Tensor],
        cache: Tensor,
        slots: Tensor,
        num_absorbed: int,
        *,
        scale: Scale = 1.0,
    ) -> Tensor:
        """MLA before attention: latent [T,R+E] goes to the cache as `store_latent` does, its first R columns normalised
        by norm [R], the others turned; and the last E columns of q [T,H,N+E] are turned, `rotation` as in `split_qkv`.

        Of the first num_absorbed tokens they are the last columns of what is returned, [num_absorbed,H,R+E], whose
        first R are the caller's to fill; of the others they stay in q.
        """

    def gated(self, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        """gate and up [T,n] -> activation(gate) * up, for an activation in `GATES`."""


class Kernels(Protocol):
    """The operations of a paged KV cache.

    Shapes: T tokens of this step, S sequences, P physical pages of B slots, N logical pages of a block table,
    HQ query heads, HKV key/value heads (HQ a multiple of HKV), D and DV the key and value head dimensions,
    R the latent dimension of MLA and R+E the width of its stored rows (latent, then the rotary key of E columns).

    Slot `page * B + offset` is where a token's row lives; `block_tables[s, i]` is the page of tokens i*B .. i*B+B-1 of
    sequence s. `seq_lens` counts every token in the cache, those of this step included. A cached value is
    `stored * scale`. Slots past the end and pages wholly before the window are never used: they may hold NaN, and the
    block table anything.

    A scale is one number for a whole cache, or fp32 [P,B,HKV], one beside each stored vector, which a store writes and
    attention reads; of latents [P,B,2], of the latent and of the rotary key.
    """

    @property
    def fused(self) -> StepKernels | None:
        """The rest of a step in kernels of its own; None where plain torch operations are as good."""

    def store_kv(
        self,
        k: Tensor,
        v: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        slots: Tensor,
        *,
        k_scale: Scale = 1.0,
        v_scale: Scale = 1.0,
    ) -> None:
        """Write k [T,HKV,D], v [T,HKV,DV] to slots [T] int64 of k_cache [P,B,HKV,D], v_cache [P,B,HKV,DV].

        stored = clamp(x / scale, finite range of the cache's dtype), rounded to the nearest; slot -1 writes nothing.
        Where each vector has its scale, that is the one which makes its largest element the largest of the dtype.
        """

    def store_latent(
        self, latent: Tensor, cache: Tensor, slots: Tensor, *, latent_dim: int, scale: Scale = 1.0
    ) -> None:
        """Write latent [T,R+E] to slots [T] int64 of cache [P,B,R+E], as `store_kv` does; latent_dim is R."""

    def paged_decode(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        block_tables: Tensor,
        seq_lens: Tensor,
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        sinks: Tensor | None = None,
        k_scale: Scale = 1.0,
        v_scale: Scale = 1.0,
    ) -> Tensor:
        """softmax(scale * q k^T) v of Q queries per sequence, its last Q tokens: q [S*Q,HQ,D] -> [S*Q,HQ,DV].

        Q is 1, or a few to verify tokens that were guessed, causal among themselves. block_tables [S,N] and seq_lens
        [S] are int32. window > 0 sees the last `window` tokens, the current one included; softcap > 0 makes scores s
        softcap * tanh(s / softcap); sinks [HQ] are logits that take part in the softmax and have no value. Out is in
        q's dtype; a sequence of length 0 (a padding row) gives zeros.
        """

    def paged_prefill(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        block_tables: Tensor,
        seq_lens: Tensor,
        query_starts: Tensor,
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        sinks: Tensor | None = None,
        k_scale: Scale = 1.0,
        v_scale: Scale = 1.0,
        k_rope: Tensor | None = None,
        max_query_len: int | None = None,
    ) -> Tensor:
        """Causal attention of q [T,HQ,D], sequence after sequence, over what is already in the cache -> [T,HQ,DV].

        query_starts [S+1] int32 bounds each sequence's queries; query i of q_len sits at position seq_len - q_len + i.
        So plain, chunked and prefix-cached prefill are one call. `max_query_len` (at least the longest) saves a sync.
        Keys of decompressed MLA, which have no scale, go on in k_rope [P,B,E], which all heads share: q is [T,HQ,D+E].
        """

    def mla_decode(
        self,
        q: Tensor,
        cache: Tensor,
        block_tables: Tensor,
        seq_lens: Tensor,
        *,
        latent_dim: int,
        scale: float,
        cache_scale: Scale = 1.0,
    ) -> Tensor:
        """`paged_decode` of absorbed queries [S,H,R+E] over latent rows [P,B,R+E] -> [S,H,R].

        A row is its own key and, in its first R columns, its own value: one latent head that all query heads share.
        `scale` is 1/sqrt(nope + rope) of the uncompressed head (times YaRN's mscale^2), not of R+E.
        """

    def mla_prefill(
        self,
        q: Tensor,
        cache: Tensor,
        block_tables: Tensor,
        seq_lens: Tensor,
        query_starts: Tensor,
        *,
        latent_dim: int,
        scale: float,
        cache_scale: Scale = 1.0,
        max_query_len: int | None = None,
    ) -> Tensor:
        """`paged_prefill` of absorbed queries [T,H,R+E] over latent rows [P,B,R+E] -> [T,H,R]."""

    def gather_latents(
        self, cache: Tensor, pages: Tensor, *, latent_dim: int, dtype: torch.dtype, scale: Scale = 1.0
    ) -> Tensor:
        """Whole pages [n] int32 of cache [P,B,R+E], times their scale, in `dtype`: [n,B,R+E]. Unused slots give
        anything; latent_dim is R."""
