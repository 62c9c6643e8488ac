"""The stream that layers add to, and the norms that read it: one kernel adds and normalises where there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from kvtool.engine.decoder.norm import Norm, RmsNorm
from kvtool.kernels.interface import StepKernels


@dataclass(frozen=True, slots=True)
class Residual:
    """x [T, hidden] + norm(branch [T, hidden]): with fused kernels the sum is left to the norm that reads it."""

    x: Tensor
    branch: Tensor | None = None
    norm: Norm | None = None

    def normed(self, norm: Norm | None, fused: StepKernels | None) -> tuple[Tensor, Tensor]:
        """The stream through `norm`, if any, and the stream."""
        if self.branch is None:
            return self.x if norm is None else norm(self.x), self.x
        norms = [one for one in (self.norm, norm) if one is not None]
        if fused is not None and norms and all(isinstance(one, RmsNorm) for one in norms):
            weights = (None if one is None else one.weight for one in (norm, self.norm))
            return fused.add_rms_norm(self.branch, self.x, *weights, eps=norms[0].eps)
        x = self.x + (self.branch if self.norm is None else self.norm(self.branch))
        return x if norm is None else norm(x), x

    def rows(self, rows: Tensor) -> Residual:
        """Some rows of it."""
        return Residual(self.x[rows], None if self.branch is None else self.branch[rows], self.norm)


def added(
    x: Tensor, branch: Callable[[Tensor | None], Tensor], norm: Norm | None, fused: StepKernels | None
) -> Residual:
    """x + norm(branch). A branch adds what it is given in its last product, which is where no norm comes between."""
    if fused is not None:
        return Residual(x, branch(None), norm)
    return Residual(branch(x) if norm is None else x + norm(branch(None)))
