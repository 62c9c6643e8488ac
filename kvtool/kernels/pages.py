"""The cache of one layer, as kernels read and write it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Scale = float | Tensor


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
