"""Mixture of experts: a router chooses, the chosen experts compute."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from kvtool.catalog.decoder import Router
from kvtool.catalog.model import Moe
from kvtool.engine.batch import StepBatch
from kvtool.engine.decoder.context import StepContext, tensor_of
from kvtool.engine.decoder.mlp import GatedMlp, Mlp
from kvtool.engine.weights.source import WeightSource
from kvtool.kernels import plain
from kvtool.kernels.fused import Choice, FusedKernels, Input, Shared
from kvtool.kernels.weights import GATES, ExpertWeights

_FEW_TOKENS = 64


class MoeRouter(Protocol):
    """Who chooses."""

    def __call__(self, x: Input, batch: StepBatch, fused: FusedKernels | None) -> tuple[Tensor, Tensor]:
        """x [T, hidden] -> the experts of each token [T, k] and their shares [T, k]."""


class MoeMlp:
    """Each token through its chosen experts, weighted, plus the shared ones if there are any, + plus."""

    def __init__(self, router: MoeRouter, experts: ExpertWeights, shared: GatedMlp | Mlp | None) -> None:
        self.router, self.experts, self.shared = router, experts, shared

    @property
    def capturable(self) -> bool:
        """Whether kernels of a GPU compute it without asking which experts were chosen."""
        return self.experts.gate.activation in GATES

    def __call__(self, x: Input, step: StepContext, plus: Tensor | None = None) -> Tensor:
        chosen, shares = self.router(x, step.mlp_batch, step.fused)
        if step.fused is not None and not isinstance(self.shared, Mlp):
            shared = None if self.shared is None else Shared(self.shared.inner, self.shared.down)
            return step.fused.experts(x, self.experts, chosen, shares, plus, shared)
        started = plus if self.shared is None else self.shared(x, step, plus)
        # Beside fused products shared experts are always gated: `load_mlp` makes all of a decoder's MLPs alike.
        return step.kernels.experts(tensor_of(x), self.experts, chosen, shares, started)


class LearnedRouter:
    """By the logits of a weight [E, hidden]."""

    def __init__(self, moe: Moe, router: Router, hidden_size: int, weights: WeightSource, prefix: str) -> None:
        def learned(name: str) -> Tensor:
            return weights.tensor(f"{prefix}.{name}", moe.num_experts).float()

        self.choice = Choice(
            weight=weights.tensor(f"{prefix}.weight", moe.num_experts, hidden_size).float().contiguous(),
            top_k=moe.experts_per_token,
            logit_bias=learned("bias") if router.logit_bias else None,
            bias=learned("e_score_correction_bias") if router.bias else None,
            is_sigmoid=router.scoring == "sigmoid",
            normalised=router.normalise,
            scale=router.scale,
            groups=router.groups,
            groups_kept=router.groups_kept,
            top_two=router.group_score == "top2",
        )

    def __call__(self, x: Input, batch: StepBatch, fused: FusedKernels | None = None) -> tuple[Tensor, Tensor]:
        if fused is not None:
            return fused.route(x, self.choice)
        return plain.route(tensor_of(x), self.choice)


class EvenRouter:
    """For random weights: experts drawn evenly from the token and its place, so a cached token routes as before."""

    def __init__(self, moe: Moe, layer: int) -> None:
        self.moe = moe
        self.shift = layer * 7919 % moe.num_experts  # a prime, so that layers differ

    def __call__(self, x: Input, batch: StepBatch, fused: FusedKernels | None = None) -> tuple[Tensor, Tensor]:
        """Drawn for all layers at once where tokens are few, so that a layer launches nothing."""
        rows = batch.decode or batch.prefill
        few = rows is not None and len(batch.token_ids) <= _FEW_TOKENS
        drawn, shares = rows.once("even experts", lambda: self._drawn(batch)) if rows else self._drawn(batch)
        if rows is not None and few:
            shifted: Tensor = rows.once("even experts of all layers", lambda: self._shifted(drawn))
            return shifted[self.shift], shares
        return (drawn + self.shift) % self.moe.num_experts, shares

    def _drawn(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """Experts of each token [T, k] in a layer without a shift, and equal shares."""
        # Odd multipliers scatter neighbours; the stride between a token's experts keeps them distinct.
        seed = batch.token_ids * 2654435761 + batch.positions * 40503
        first = (seed >> 7) % self.moe.num_experts
        stride = max(1, self.moe.num_experts // self.moe.experts_per_token)
        chosen = first[:, None] + torch.arange(self.moe.experts_per_token, device=seed.device) * stride
        return chosen, torch.full(chosen.shape, 1.0 / self.moe.experts_per_token, device=seed.device)

    def _shifted(self, drawn: Tensor) -> Tensor:
        """By each shift that there is: [E, T, k]."""
        shifts = torch.arange(self.moe.num_experts, device=drawn.device)
        return (drawn + shifts[:, None, None]) % self.moe.num_experts
