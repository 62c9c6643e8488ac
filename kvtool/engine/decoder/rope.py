"""Rotary position embedding, with the long-context scalings of Llama 3, YaRN, LongRoPE and linear interpolation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kvtool.catalog.decoder import RopeScaling
from kvtool.system.errors import KvtoolError


class Rope:
    """Tables of cos and signed sin, [max_positions, dim] each: x cos + roll(x, dim/2) sin rotates halves."""

    def __init__(
        self,
        theta: float,
        scaling: RopeScaling | None,
        dim: int,
        max_positions: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        _require_short(scaling, max_positions)
        frequencies, magnitude = rope_frequencies(theta, dim, scaling)
        angles = torch.arange(max_positions, dtype=torch.float32)[:, None] * frequencies
        cos, sin = angles.cos() * magnitude, angles.sin() * magnitude
        self._cos = torch.cat((cos, cos), dim=-1).to(device, dtype)
        self._sin = torch.cat((-sin, sin), dim=-1).to(device, dtype)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin for positions [T], as [T, 1, dim] each: shared by all layers of a step."""
        return self._cos.index_select(0, positions).unsqueeze(1), self._sin.index_select(0, positions).unsqueeze(1)


def rope_frequencies(theta: float, dim: int, scaling: RopeScaling | None) -> tuple[Tensor, float]:
    """Angular frequencies [dim/2] fp32, and the factor on cos and sin. Formulas as in HF's modeling_rope_utils."""
    frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if scaling is None:
        return frequencies, 1.0
    if scaling.kind == "linear":
        return frequencies / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(frequencies, scaling), 1.0
    if scaling.kind == "yarn":
        return _yarn(frequencies, theta, dim, scaling)
    if scaling.kind == "longrope":
        return _longrope(frequencies, scaling)
    raise KvtoolError(f"rope scaling {scaling.kind!r} is not one the engine runs: linear, llama3, yarn or longrope")


def _require_short(scaling: RopeScaling | None, max_positions: int) -> None:
    """LongRoPE turns all positions in another way once a sequence outgrows the original context: its cache would hold
    keys of both."""
    original = scaling.original_max_position_embeddings if scaling and scaling.kind == "longrope" else None
    if original is not None and max_positions > original:
        raise KvtoolError(
            f"the engine runs LongRoPE inside its original context of {original} tokens, not {max_positions}"
        )


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's attention temperature, arXiv 2309.00071 section 3.4."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _required(value: float | None, name: str, kind: str) -> float:
    if value is None:
        raise KvtoolError(f"rope scaling {kind!r} lacks {name!r}")
    return value


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    original = _required(scaling.original_max_position_embeddings, "original_max_position_embeddings", "llama3")
    low = _required(scaling.low_freq_factor, "low_freq_factor", "llama3")
    high = _required(scaling.high_freq_factor, "high_freq_factor", "llama3")
    turns = original * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def _longrope(frequencies: Tensor, scaling: RopeScaling) -> tuple[Tensor, float]:
    """Each pair of dimensions is slowed by a factor of its own (arXiv 2402.13753)."""
    if len(scaling.short_factor) != len(frequencies):
        raise KvtoolError(
            f"rope scaling 'longrope' has {len(scaling.short_factor)} short factors for {len(frequencies)} frequencies"
        )
    magnitude = _required(scaling.attention_factor, "attention_factor", "longrope")
    return frequencies / torch.tensor(scaling.short_factor, dtype=torch.float32), magnitude


def _yarn(frequencies: Tensor, theta: float, dim: int, scaling: RopeScaling) -> tuple[Tensor, float]:
    """Dimensions that turn often inside the original context are kept, the slow ones interpolated."""
    original = _required(scaling.original_max_position_embeddings, "original_max_position_embeddings", "yarn")

    def dimension_turning(times: float) -> float:
        return dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension_turning(scaling.beta_fast or 32.0), dimension_turning(scaling.beta_slow or 1.0)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    kept = 1 - ramp.clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor), _yarn_magnitude(scaling)


def _yarn_magnitude(scaling: RopeScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return yarn_mscale(scaling.factor, scaling.mscale) / yarn_mscale(scaling.factor, scaling.mscale_all_dim)
    return yarn_mscale(scaling.factor, 1.0)
