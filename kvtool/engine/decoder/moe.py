"""Mixture of experts: a router chooses, the chosen experts compute."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear, softmax

from kvtool.catalog.decoder import Router
from kvtool.catalog.model import Moe
from kvtool.engine.batch import StepBatch
from kvtool.engine.decoder.context import StepContext
from kvtool.engine.decoder.mlp import GatedMlp, Mlp
from kvtool.engine.weights.source import WeightSource
from kvtool.kernels.interface import GATES, ExpertWeights


class MoeMlp:
    """Each token through its chosen experts, weighted, plus the shared ones if there are any."""

    def __init__(
        self,
        router: Callable[[Tensor, StepBatch], tuple[Tensor, Tensor]],
        experts: ExpertWeights,
        shared: GatedMlp | Mlp | None,
    ) -> None:
        self.router, self.experts, self.shared = router, experts, shared

    @property
    def capturable(self) -> bool:
        """Whether kernels of a GPU compute it without asking which experts were chosen."""
        return self.experts.gate.activation in GATES

    def __call__(self, x: Tensor, step: StepContext) -> Tensor:
        chosen, shares = self.router(x, step.mlp_batch)
        started = None if self.shared is None else self.shared(x, step)
        return step.kernels.experts(x, self.experts, chosen, shares, started)


class LearnedRouter:
    """x [T, hidden] -> the experts of each token [T, k] and their shares [T, k]."""

    def __init__(self, moe: Moe, router: Router, hidden_size: int, weights: WeightSource, prefix: str) -> None:
        self.moe = moe
        self.router = router
        self.weight = weights.tensor(f"{prefix}.weight", moe.num_experts, hidden_size).float()
        self.logit_bias = weights.tensor(f"{prefix}.bias", moe.num_experts).float() if router.logit_bias else None
        self.bias = (
            weights.tensor(f"{prefix}.e_score_correction_bias", moe.num_experts).float() if router.bias else None
        )

    def __call__(self, x: Tensor, batch: StepBatch) -> tuple[Tensor, Tensor]:
        logits = linear(x.float(), self.weight, self.logit_bias)
        scores = logits.sigmoid() if self.router.scoring == "sigmoid" else softmax(logits, dim=-1)
        preferred = scores if self.bias is None else scores + self.bias
        if self.router.groups > 1:
            preferred = self._inside_best_groups(preferred)
        chosen = preferred.topk(self.moe.experts_per_token, dim=-1).indices
        shares = scores.gather(-1, chosen)
        if self.router.normalise:
            shares = shares / (shares.sum(dim=-1, keepdim=True) + 1e-20)
        return chosen, shares * self.router.scale

    def _inside_best_groups(self, scores: Tensor) -> Tensor:
        """Experts outside each token's `groups_kept` best groups cannot be chosen (DeepSeek)."""
        grouped = scores.unflatten(-1, (self.router.groups, -1))
        best = grouped.topk(2, dim=-1).values.sum(-1) if self.router.group_score == "top2" else grouped.amax(-1)
        kept = torch.zeros_like(best, dtype=torch.bool)
        kept.scatter_(-1, best.topk(self.router.groups_kept, dim=-1).indices, True)
        masked: Tensor = grouped.masked_fill(~kept.unsqueeze(-1), float("-inf"))
        return masked.flatten(-2)


class EvenRouter:
    """For random weights: experts drawn evenly from the token and its place, so a cached token routes as before."""

    def __init__(self, moe: Moe, layer: int) -> None:
        self.moe = moe
        self.layer = layer

    def __call__(self, x: Tensor, batch: StepBatch) -> tuple[Tensor, Tensor]:
        # Odd multipliers scatter neighbours; the stride between a token's experts keeps them distinct.
        seed = batch.token_ids * 2654435761 + batch.positions * 40503 + self.layer * 7919
        first = (seed >> 7) % self.moe.num_experts
        stride = max(1, self.moe.num_experts // self.moe.experts_per_token)
        ranks = torch.arange(self.moe.experts_per_token, device=x.device) * stride
        chosen = (first[:, None] + ranks) % self.moe.num_experts
        return chosen, torch.full(chosen.shape, 1.0 / self.moe.experts_per_token, device=x.device)
