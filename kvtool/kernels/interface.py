"""What kernels promise: shapes, units and meaning of every operation, whoever computes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from kvtool.kernels.pages import Pages
from kvtool.kernels.rows import Rows, Softmax
from kvtool.kernels.weights import AnyWeight, ExpertWeights, GatedWeight, Weight

if TYPE_CHECKING:
    from kvtool.kernels.fused import FusedKernels

Rotation = tuple[Tensor, Tensor]
Replay = Callable[[], None]


class StepKernels(Protocol):
    """A decoder step but for attention: products with weights, and what lies between. T tokens, hidden size n."""

    def prepare(self, weight: AnyWeight) -> AnyWeight:
        """The weight with what these kernels keep beside it: once, when a model is loaded. All kernels take any weight,
        prepared by whichever kernels or by none."""

    def weight_copies(self, dtype: torch.dtype, device: torch.device) -> int:
        """How many times memory holds a prepared weight of this dtype."""

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        """x [T,K] -> x W^T + bias [T,N]."""

    def gated(self, x: Tensor, weight: GatedWeight) -> Tensor:
        """x [T,K] -> the gate of both products [T,N]."""

    def experts(
        self, x: Tensor, weights: ExpertWeights, chosen: Tensor, shares: Tensor, plus: Tensor | None = None
    ) -> Tensor:
        """x [T,H] through the experts `chosen` [T,k] for each token, times `shares` [T,k], added up, + plus [T,H].

        An expert is down(activation(gate x) * up x).
        """

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / rms(x) * weight over the last dimension of x [..., n], computed in fp32.

        weight is [n], or [heads,n] for one row a head. One that is wider than x is applied before the rounding.
        """

    def rotate(self, x: Tensor, rotation: Rotation) -> Tensor:
        """x cos + roll(x, E/2) sin for `rotation` = (cos, signed sin), [T,1,E] each, of the first E columns of
        x [T,heads,D]."""

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor | None, x_weight: Tensor | None = None, *, eps: float
    ) -> tuple[Tensor, Tensor]:
        """x and residual [T,n] -> (RMSNorm of their sum by weight [n], the sum), x normalised first by x_weight [n].

        Without a weight nothing is normalised there. Weights may be wider than x: there is one rounding, the last.
        """

    def split_qkv(
        self, qkv: Tensor, norms: Tensor | None, eps: float, rotation: Rotation | None, pages: Pages, slots: Tensor
    ) -> Tensor:
        """The heads [Q | K | V] of qkv [T,HQ+2*HKV,D] -> q [T,HQ,D]; K and V go to the pages, as `store` does.

        Q and K are normalised first, by norms [HQ+HKV,D] where there are any, and their first E columns are turned by
        `rotation`, [T,1,E] each, if by any.
        """

    def likeliest(self, logits: Tensor) -> Tensor:
        """logits [n, vocab] -> the token [n] int64 with the largest of each row; of equals the first, and NaN is larger
        than all."""

    def nucleus(self, probabilities: Tensor, top_ps: Tensor) -> Tensor:
        """probabilities fp32 [n, vocab], those outside the smallest set that reaches top_ps fp32 [n] set to 0.

        The likeliest stays. Of equal ones at the set's end as many stay as are needed, or all of them.
        """

    def place(self, positions: Tensor, block_tables: Tensor, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Where the tokens of decode rows go: positions [S] int64 and block_tables [S,N] -> [S] each of

        - positions int64 to compute,   p, and 0 of a padding row
        - slots int64 to store to,      block_tables[s, p // B] * B + p % B, and -1 of a padding row
        - seq_lens int32 behind it,     p + 1, and 0 of a padding row

                     row 0           row 1       row 2
        positions    5               -1          32        B = 16: row 0 stands in its first page, row 2 in its third
        block_table  [7, ...]        [...]       [2, 9, 4, ...]
        slots        7 * 16 + 5      -1          4 * 16 + 0

        The positions that were given go on by one, in place; those of padding rows stay -1.
        """

    def split_latent(
        self,
        q: Tensor,
        latent: Tensor,
        norm: Tensor,
        eps: float,
        rotation: Rotation,
        pages: Pages,
        slots: Tensor,
        num_absorbed: int,
    ) -> Tensor:
        """What comes between MLA's projections and its attention; `rotation` is [T,1,E] each.

        latent [T,R+E]    columns      R                  E
                          become       normed by norm     turned      and go to the pages, as `store` does

        q [T,H,N+E]       columns      N                  E
          first tokens    become       as they are        as they are
          the others      become       as they are        turned, in place

        returned          columns      R                  E
          first tokens                 left unset         the turned columns of q

        The first tokens are num_absorbed, and [num_absorbed,H,R+E] is returned.
        """


class Kernels(StepKernels, Protocol):
    """All that a step calls: `StepKernels` and the operations of a paged KV cache."""

    def record(self, step: Callable[[], Tensor]) -> tuple[Tensor, Replay | None]:
        """What `step` gives, and how the host has it done again at once: over the same memory, into the same tensor.

        None where these kernels know no such way, or where `step` did more than to call them. The tensors that `step`
        was made of must outlive it.
        """

    @property
    def fused(self) -> FusedKernels | None:
        """Products with what stands around them, where these kernels have such."""

    @property
    def tile_tokens(self) -> int:
        """Tokens that `prefill` reads at once where they lie in one page: pages made for it should hold as many."""

    def store(self, k: Tensor, v: Tensor | None, pages: Pages, slots: Tensor) -> None:
        """Write k [T,HKV,D] and v [T,HKV,DV] to slots [T] int64 of the pages; of latents k [T,R+E] alone.

        stored = clamp(x / scale, finite range of the cache's dtype), rounded to the nearest; slot -1 writes nothing.
        Where each vector has its scale, that is the one which makes its largest element the largest of the dtype.
        """

    def decode(self, q: Tensor, pages: Pages, rows: Rows, softmax: Softmax) -> Tensor:
        """Attention of the same number of queries for each sequence, its last ones: q [T,HQ,D] -> [T,HQ,DV].

        One query a sequence, or a few to verify tokens that were guessed; they are causal among themselves. Out is in
        q's dtype; a sequence of length 0 (a padding row) gives zeros.
        """

    def prefill(self, q: Tensor, pages: Pages, rows: Rows, softmax: Softmax) -> Tensor:
        """Causal attention of q [T,HQ,D], sequence after sequence, over what is in the cache -> [T,HQ,DV].

        Query i of q_len sits at position seq_len - q_len + i: plain, chunked and prefix-cached prefill are one call.
        """

    def gather(self, pages: Pages, chosen: Tensor, dtype: torch.dtype) -> Tensor:
        """Whole pages `chosen` [n] int32 of latents, times their scales: [n,B,R+E] in `dtype`.

        Unused slots give anything.
        """
