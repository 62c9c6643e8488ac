"""The stream that layers add to: the sum is left to the norm that reads it, as one kernel adds and normalises."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvtool.engine.decoder.norm import Norm, RmsNorm
from kvtool.kernels.interface import StepKernels


@dataclass(frozen=True, slots=True)
class Residual:
    """x [T, hidden] + norm(branch [T, hidden])."""

    x: Tensor
    branch: Tensor | None = None
    norm: Norm | None = None

    def normed(self, norm: Norm | None, kernels: StepKernels) -> tuple[Tensor, Tensor]:
        """The stream through `norm`, if any, and the stream."""
        if self.branch is None:
            return self.x if norm is None else norm(self.x, kernels), self.x
        norms = [given for given in (self.norm, norm) if given is not None]
        if norms and all(isinstance(given, RmsNorm) for given in norms):
            weights = (None if given is None else given.weight for given in (norm, self.norm))
            return kernels.add_rms_norm(self.branch, self.x, *weights, eps=norms[0].eps)
        x = self.x + (self.branch if self.norm is None else self.norm(self.branch, kernels))
        return x if norm is None else norm(x, kernels), x

    def rows(self, rows: Tensor) -> Residual:
        """Some rows of it."""
        return Residual(self.x[rows], None if self.branch is None else self.branch[rows], self.norm)
