"""Gated MLPs, dense or as a mixture of experts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softmax

from kvtool.catalog.model import Moe, Router
from kvtool.engine.batch import StepBatch
from kvtool.engine.decoder.linear import GatedLinear, Linear
from kvtool.engine.weights.source import WeightSource
from kvtool.kernels import StepKernels


class GatedMlp:
    """down(act(gate x) * up x) + plus. `names` are those of gate, up and down below `prefix`."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: str,
        weights: WeightSource,
        prefix: str,
        names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
        biased: bool = False,
    ) -> None:
        gate, up, down = names
        inner = intermediate_size
        self.gated = GatedLinear(
            weights.tensor(f"{prefix}.{gate}.weight", inner, hidden_size),
            weights.tensor(f"{prefix}.{up}.weight", inner, hidden_size),
            activation,
            (weights.tensor(f"{prefix}.{gate}.bias", inner), weights.tensor(f"{prefix}.{up}.bias", inner))
            if biased
            else None,
        )
        self.down = Linear(
            weights.tensor(f"{prefix}.{down}.weight", hidden_size, inner),
            weights.tensor(f"{prefix}.{down}.bias", hidden_size) if biased else None,
        )

    def __call__(
        self, x: Tensor, batch: StepBatch, plus: Tensor | None = None, fused: StepKernels | None = None
    ) -> Tensor:
        return self.down(self.gated(x, fused), plus)


class MoeMlp:
    """Each token through its chosen experts, weighted, plus the shared ones if there are any."""

    def __init__(
        self,
        moe: Moe,
        router: Callable[[Tensor, StepBatch], tuple[Tensor, Tensor]],
        experts: list[GatedMlp],
        shared: GatedMlp | None,
    ) -> None:
        self.moe = moe
        self.router = router
        self.experts = experts
        self.shared = shared

    def __call__(self, x: Tensor, batch: StepBatch, plus: Tensor, fused: StepKernels | None = None) -> Tensor:
        chosen, shares = self.router(x, batch)
        out = self.shared(x, batch, plus, fused) if self.shared else plus.clone()
        for expert in chosen.unique().tolist():
            rows, ranks = (chosen == expert).nonzero(as_tuple=True)
            expert_out = self.experts[expert](x[rows], batch, fused=fused)
            out.index_add_(0, rows, expert_out * shares[rows, ranks, None].to(x.dtype))
        return out


class LearnedRouter:
    """x [T, hidden] -> the experts of each token [T, k] and their shares [T, k]."""

    def __init__(self, moe: Moe, router: Router, hidden_size: int, weights: WeightSource, prefix: str) -> None:
        self.moe = moe
        self.router = router
        self.weight = weights.tensor(f"{prefix}.weight", moe.num_experts, hidden_size).float()
        self.bias = (
            weights.tensor(f"{prefix}.e_score_correction_bias", moe.num_experts).float() if router.bias else None
        )

    def __call__(self, x: Tensor, batch: StepBatch) -> tuple[Tensor, Tensor]:
        logits = x.float() @ self.weight.T
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
