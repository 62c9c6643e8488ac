"""What a step of an engine takes: prompts, and a token of each request that decodes, computed together."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvtool.catalog.gpus import Gpu
from kvtool.replay.saved import PrefillFloor


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds. A step that decodes takes `decode_s` at least and `sequence_s` for each request, and `context_s` more
    for each token of context; with prompts in it, its tokens compute for `token_s` each as theirs do.

    `spread`: the part of these times that the fastest and the slowest of what was measured took, None where the times
    follow from a card's figures.
    """

    floor: PrefillFloor
    decode_s: float = 0.0
    sequence_s: float = 0.0
    context_s: float = 0.0
    token_s: float = 0.0
    spread: tuple[float, float] | None = None

    def step_s(self, compute_s: float, decoding: int = 0, context: float = 0.0) -> float:
        """With so much of prompts to compute, and `decoding` requests of `context` tokens together."""
        seconds = self.floor.step_s(compute_s + decoding * self.token_s) if compute_s else 0.0
        if decoding:
            alone_s = self.decode_s + decoding * self.sequence_s
            seconds = max(seconds, alone_s, decoding * self.token_s, self.floor.weights_s)
        return seconds + context * self.context_s

    def slower(self, factor: float) -> StepTimes:
        """All of it in `factor` times the time."""
        return replace(
            self,
            floor=self.floor.slower(factor),
            decode_s=self.decode_s * factor,
            sequence_s=self.sequence_s * factor,
            context_s=self.context_s * factor,
            token_s=self.token_s * factor,
        )


def card_steps(floor: PrefillFloor, gpu: Gpu, token_bytes: float, num_gpus: int = 1) -> StepTimes:
    """At a card's own figures: a decode reads the weights once and `token_bytes` of each token of context."""
    assert gpu.memory_bandwidth_gbps is not None
    return StepTimes(
        floor=floor,
        context_s=token_bytes / (gpu.memory_bandwidth_gbps * 1e9 * num_gpus),
        token_s=floor.last_s(1, 0),
    )
