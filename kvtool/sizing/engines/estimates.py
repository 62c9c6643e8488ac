"""What an engine takes of a GPU besides weights and cache: each term with how far off it may be, and why."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes of one GPU, by how much they may be off, and in words what they are and how the margin was measured."""

    bytes: int
    margin_bytes: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """`activation` is torch's peak over the weights, `runtime` what torch does not see, `graphs` what is taken off for
    CUDA graphs (0 where the engine does not), `beside_weights` what is loaded with them.
    """

    activation: Estimate
    runtime: Estimate
    graphs: Estimate
    beside_weights: Estimate = field(default_factory=lambda: Estimate(bytes=0, margin_bytes=0, text=""))

    @property
    def reserve_bytes(self) -> int:
        return self.runtime.bytes + self.graphs.bytes

    @property
    def reserve_margin_bytes(self) -> int:
        return self.runtime.margin_bytes + self.graphs.margin_bytes
