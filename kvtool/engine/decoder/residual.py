"""The stream that layers add to. The sum is left to the norm that reads it, as one kernel adds and normalises; where
products are fused, they add to the stream themselves, and normalise what they read of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvtool.engine.decoder.context import StepContext
from kvtool.engine.decoder.norm import Norm, RmsNorm
from kvtool.kernels.fused import Input, Normed


@dataclass(frozen=True, slots=True)
class Residual:
    """x [T, hidden] + norm(branch [T, hidden])."""

    x: Tensor
    branch: Tensor | None = None
    norm: Norm | None = None

    def normed(self, norm: Norm | None, step: StepContext) -> tuple[Input, Tensor]:
        """The stream through `norm`, if any, and the stream."""
        kernels = step.kernels
        if self.branch is None:
            return normed(self.x, norm, step), self.x
        norms = [given for given in (self.norm, norm) if given is not None]
        if norms and all(isinstance(given, RmsNorm) for given in norms):
            weights = (None if given is None else given.weight for given in (norm, self.norm))
            return kernels.add_rms_norm(self.branch, self.x, *weights, eps=norms[0].eps)
        x = self.x + (self.branch if self.norm is None else self.norm(self.branch, kernels))
        return x if norm is None else norm(x, kernels), x

    def rows(self, rows: Tensor) -> Residual:
        """Some rows of it."""
        return Residual(self.x[rows], None if self.branch is None else self.branch[rows], self.norm)


def normed(x: Tensor, norm: Norm | None, step: StepContext) -> Input:
    """x through `norm`, if any; an RMSNorm is left to fused products."""
    if norm is None:
        return x
    if step.fused is not None and isinstance(norm, RmsNorm):
        return Normed(x, norm.weight, norm.eps)
    return norm(x, step.kernels)


def plus_of(x: Tensor, norm: Norm | None, step: StepContext) -> Tensor | None:
    """What the last product of a branch adds: the stream, unless a norm of the branch comes between."""
    return x if step.fused is not None and norm is None else None


def joined(x: Tensor, branch: Tensor, norm: Norm | None, plus: Tensor | None) -> Residual:
    """The stream behind a branch, to which `plus` is added already where there is one."""
    return Residual(x, branch, norm) if plus is None else Residual(branch)
