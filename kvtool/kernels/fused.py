"""What products do besides: the norm of what they read, the gate of what they give, the sum with what was there before.

Between two products of a decode step lies little work; what it costs is the launch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from kvtool.kernels.interface import Rotation
from kvtool.kernels.pages import Pages
from kvtool.kernels.weights import ExpertWeights, GatedWeight, Weight


@dataclass(frozen=True, slots=True)
class Normed:
    """x [T,n] that who reads it normalises: x / rms(x) * weight [n], computed in fp32. weight may be wider than x."""

    x: Tensor
    weight: Tensor
    eps: float


Input = Tensor | Normed


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How a token's experts are chosen, by logits x W^T + logit_bias for weight fp32 [E,n].

    - scores: sigmoid or softmax of the logits. Of a chosen expert it is the share, times `scale`; where they are
      `normalised`, shares add up to 1 first.
    - chosen: the `top_k` highest scores, + bias [E] where there is one, inside each token's `groups_kept` best of
      `groups` equal groups. A group is as good as its best expert, or as its best two (`top_two`).
    """

    weight: Tensor
    top_k: int
    logit_bias: Tensor | None = None
    bias: Tensor | None = None
    is_sigmoid: bool = False
    normalised: bool = True
    scale: float = 1.0
    groups: int = 1
    groups_kept: int = 1
    top_two: bool = False


@dataclass(frozen=True, slots=True)
class Shared:
    """Experts of every token, in one piece: down(gate(x))."""

    inner: GatedWeight
    down: Weight

    @property
    def width(self) -> int:
        """Inner elements of all of them."""
        return int(self.down.weight.shape[1])


class FusedKernels(Protocol):
    """Products of few rows, as `StepKernels` has them, with what stands around them: a launch each."""

    @property
    def most_rows(self) -> int:
        """Of more rows the work in between is best done on its own."""

    def linear(self, x: Input, weight: Weight, plus: Tensor | None = None) -> Tensor:
        """x [T,K] -> x W^T + bias + plus [T,N]; plus stays as it is."""

    def gated(self, x: Input, weight: GatedWeight) -> Tensor:
        """x [T,K] -> the gate of both products [T,N]."""

    def likeliest(self, x: Input, weight: Weight) -> Tensor:
        """x [T,K] -> int64 [T]: which column of x W^T + bias, as `linear` would round it, is the largest of each row;
        of equal ones the first, and NaN is larger than all."""

    def absorbed(
        self,
        q: Tensor,
        latent: Tensor,
        norm: Tensor,
        eps: float,
        rotation: Rotation,
        pages: Pages,
        slots: Tensor,
        w_uk: Tensor,
    ) -> Tensor:
        """`StepKernels.split_latent` of tokens that all decode, and the columns which that leaves unset:

        q [T,H,N+E] and w_uk [H,N,R] -> [T,H,R+E], whose first R columns are q's first N times w_uk.
        """

    def route(self, x: Input, choice: Choice) -> tuple[Tensor, Tensor]:
        """x [T,H] -> the experts int64 [T,k] of each token and their shares fp32 [T,k]."""

    def experts(
        self,
        x: Input,
        weights: ExpertWeights,
        chosen: Tensor,
        shares: Tensor,
        plus: Tensor | None = None,
        shared: Shared | None = None,
    ) -> Tensor:
        """`StepKernels.experts` of x [T,H], + what `shared` makes of it, + plus [T,H]."""
