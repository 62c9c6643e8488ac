"""What kernels promise: shapes, units and meaning of every operation, whoever computes it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

from kvtool.kernels.blocks import Blocks, Saving

if TYPE_CHECKING:
    from kvtool.kernels.fused import FusedKernels

Scale = float | Tensor
Rotation = tuple[Tensor, Tensor]
Made = TypeVar("Made")
Replay = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Pages:
    """The cache of one layer: P physical pages of B slots, a row of K and V for one token in each slot.

    Token t of a sequence lies in slot t % B of its page t // B; a slot is also counted through all pages, page * B + t.
    Slots past a sequence's end and pages wholly before its window are never used: they may hold NaN.

    - k [P,B,HKV,D] and v [P,B,HKV,DV]: keys and values of HKV heads.
    - k_scale and v_scale: a value is what is stored times its scale. A number for all, or fp32 [P,B,HKV]: one beside
      each stored vector, which a store writes and attention reads.
    - k_rope [P,B,E]: more columns of every key, the same for all heads (decompressed MLA). Such keys have no scale.

    Without v the pages hold latents (MLA). A row of k [P,B,R+E] is the key of all heads, and its first R = latent_dim
    columns are their value too. k_scale is a number or fp32 [P,B,2]: the latent's, then the other columns'.
    """

    k: Tensor
    v: Tensor | None = None
    k_scale: Scale = 1.0
    v_scale: Scale = 1.0
    k_rope: Tensor | None = None
    latent_dim: int = 0

    @property
    def block_size(self) -> int:
        """Tokens of a page."""
        return int(self.k.shape[1])

    @property
    def value_dim(self) -> int:
        """Columns of a head's output."""
        return self.latent_dim if self.v is None else int(self.v.shape[3])

    @property
    def tensors(self) -> list[Tensor]:
        """All that is stored, page after page."""
        held = (self.k, self.v, self.k_rope, self.k_scale, self.v_scale)
        return [tensor for tensor in held if isinstance(tensor, Tensor)]

    def map(self, function: Callable[[Tensor], Tensor]) -> Pages:
        """The pages of what `function` makes of each tensor."""

        def mapped(scale: Scale) -> Scale:
            return function(scale) if isinstance(scale, Tensor) else scale

        k, v, k_rope = (None if tensor is None else function(tensor) for tensor in (self.k, self.v, self.k_rope))
        assert k is not None
        return Pages(k, v, mapped(self.k_scale), mapped(self.v_scale), k_rope, self.latent_dim)


@dataclass(frozen=True, eq=False)
class Rows:
    """Whose queries a call has: S sequences and where their tokens are.

    - block_tables [S,N] int32: entry i is the physical page of a sequence's tokens i*B .. i*B+B-1. Entries of pages
      that are not used may be anything.
    - seq_lens [S] int32: tokens in the cache, those of this step included; 0 for a padding row.
    - query_starts [S+1] int32: bounds of each sequence's queries. `decode` does without.
    - max_query_len: at least the longest sequence's number of queries; None asks query_starts, which waits for a GPU.

    What a kernel on the host makes of the tensors is made once, for all layers of a step: nobody writes to them before
    the step is over.
    """

    block_tables: Tensor
    seq_lens: Tensor
    query_starts: Tensor | None = None
    max_query_len: int | None = None
    _made: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` works out of these tensors, made for the first layer of a step that asks by this key."""
        if key not in self._made:
            self._made[key] = make()
        made: Made = self._made[key]
        return made

    @cached_property
    def tables(self) -> list[list[int]]:
        """block_tables on the host."""
        return self.block_tables.tolist()

    @cached_property
    def lengths(self) -> list[int]:
        """seq_lens on the host."""
        return self.seq_lens.tolist()

    @cached_property
    def starts(self) -> list[int]:
        """query_starts on the host."""
        assert self.query_starts is not None, "prefill needs query_starts"
        return self.query_starts.tolist()

    @property
    def longest(self) -> int:
        """The most queries that a sequence may have."""
        if self.max_query_len is not None:
            return self.max_query_len
        return max((stop - start for start, stop in pairwise(self.starts)), default=0)

    def with_starts(self, num_queries: int) -> Rows:
        """The rows of a decode of so many queries as those of a prefill: each sequence has its share of them."""
        if self.query_starts is not None:
            return self
        return self.once(("starts", num_queries), lambda: self._with_equal_shares(num_queries))

    def _with_equal_shares(self, num_queries: int) -> Rows:
        each = num_queries // max(1, len(self.seq_lens))
        starts = each * torch.arange(len(self.seq_lens) + 1, dtype=torch.int32, device=self.seq_lens.device)
        return replace(self, query_starts=starts, max_query_len=each)


@dataclass(frozen=True, slots=True)
class Softmax:
    """What becomes of scores s = q k^T: softmax(scale * s), and what may come between.

    - window > 0: a query sees the last `window` tokens, its own included.
    - softcap > 0: a score becomes softcap * tanh(score / softcap).
    - sinks [HQ]: a logit of each query head that takes part in the softmax and has no value.

    Of MLA the scale is 1/sqrt(nope + rope) of the uncompressed head (times YaRN's mscale^2), not of R+E.
    """

    scale: float
    window: int = 0
    softcap: float = 0.0
    sinks: Tensor | None = None


# Experts with these gates are computed on a GPU without asking it which were chosen, so that a graph can hold them.
GATES = frozenset(("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "clamped_swiglu"))


@dataclass(frozen=True, slots=True)
class Gate:
    """What becomes of a gate and of what comes up beside it: activation(gate) * up.

    "clamped_swiglu" clamps both to `limit` first: (up + 1) * gate * sigmoid(alpha * gate) (gpt-oss).
    """

    activation: str
    alpha: float = 0.0
    limit: float = 0.0


@dataclass(frozen=True, slots=True)
class Weight:
    """weight [N,K] of a product, and its bias [N]. `packed` is what kernels keep beside it in a layout of their own;
    until then `stored` is what the weight was made of, where it was quantised; `saving` is what that saves afterwards.
    """

    weight: Tensor
    bias: Tensor | None = None
    packed: Any = None
    stored: Blocks | None = None
    saving: Saving | None = None


@dataclass(frozen=True, slots=True)
class GatedWeight:
    """Two products of one input in one piece: weight [2N,K] is the gate's over the other, and so is bias [2N]."""

    weight: Tensor
    bias: Tensor | None
    gate: Gate
    packed: Any = None
    stored: Blocks | None = None
    saving: Saving | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertWeights:
    """E experts in one piece: gate over up [E,2I,H] and down [E,H,I], with their biases [E,2I] and [E,H]."""

    gate_up: Tensor
    down: Tensor
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    gate: Gate
    packed: Any = None


AnyWeight = TypeVar("AnyWeight", Weight, GatedWeight, ExpertWeights)


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
