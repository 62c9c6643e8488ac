"""What running a model needs beyond its sizes: facts that its config states, in general options of one decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Long-context scaling of rotary positions, with HF's names. `kind`: llama3 | yarn | linear | longrope."""

    kind: str
    factor: float
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    truncate: bool = True  # whether YaRN's range of dimensions is rounded to whole ones
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    short_factor: tuple[float, ...] = ()  # LongRoPE's, of each pair of dimensions, inside the original context


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """How experts are chosen. `scoring`: softmax | sigmoid. Groups as in DeepSeek-V2/V3 (1 group = none)."""

    scoring: str = "softmax"
    normalise: bool = True
    scale: float = 1.0
    groups: int = 1
    groups_kept: int = 1
    group_score: str = "max"  # max (DeepSeek-V2) | top2 (DeepSeek-V3)
    bias: bool = False  # a learned correction of the choice, not of the weight (DeepSeek-V3)
    logit_bias: bool = False  # a bias of the logits, so of choice and weight (gpt-oss)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClampedSwiglu:
    """gpt-oss's gate: (up + 1) * gate * sigmoid(alpha * gate), with gate <= limit and -limit <= up <= limit."""

    alpha: float = 1.702
    limit: float = 7.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """How a model computes. `exact` is False where a catalogue entry has its family's defaults.

    `family` names where its weights lie: a model_type of HF. `refused` says, in words, what its config asks for that
    the engine does not do: such a model can be sized, not run.
    """

    family: str
    exact: bool
    refused: str | None = None
    activation: str = "silu"
    gated_mlp: bool = True
    clamped_swiglu: ClampedSwiglu | None = None
    norm_eps: float = 1e-6
    norm_kind: Literal["rms", "layer"] = "rms"
    norms: Literal["before", "after", "around"] = "before"  # of attention and of the MLP
    scaled_embedding: bool = False  # embeddings are multiplied by sqrt(hidden_size)
    position_offset: int | None = (
        None  # positions are learned, in a table whose first row is that many before the first
    )
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_interleaved: bool = False
    rope_pattern: tuple[bool, ...] = (True,)  # which layers rotate, repeated over all of them
    rotary_fraction: float = 1.0  # of a head's dimensions, the first ones
    local_rope_theta: float | None = None  # of sliding layers, which then have no scaling
    attention_scale: float | None = None  # None: 1 / sqrt(head dimension)
    attention_softcap: float = 0.0  # 0: none
    logit_softcap: float = 0.0
    attention_sinks: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    qk_norm_spans_heads: bool = False  # one norm over all heads of a token, not one for each head
    router: Router | None = None
    eos_token_ids: tuple[int, ...] = ()

    def rotates(self, layer: int) -> bool:
        """Whether a layer turns its queries and keys."""
        return self.rope_pattern[layer % len(self.rope_pattern)]
