"""What the accuracy part of `kvtool bench` found of one cache format on one text."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from kvtool.results.document import Struct

WORST_LAYERS = 3


def worst_layers(attention_error: Sequence[float]) -> list[int]:
    """The layers whose attention is off most, the worst first; none where nothing is."""
    order = sorted(range(len(attention_error)), key=lambda layer: -attention_error[layer])
    return [layer for layer in order[:WORST_LAYERS] if attention_error[layer] > 0]


class CacheSpeed(Struct, frozen=True, kw_only=True):
    """How long a decode step of one sequence takes over growing contexts, in turns with the reference's.

    - `dtype`: of weights and activations. `itl_ms` and `reference_itl_ms` by context, a value a turn.
    - `intercept_ms` and `slope_us_per_token`: of the line through them, the median over turns; `*_se` standard errors.
    - `store_us_per_token`: to write K and V of a token in all layers, many tokens at once.
    - `held_bytes`: by context, what the cache's tensors take.
    - `pays_from_tokens`: the context from which the format is faster; None where that is not shown. `pays` in words.
    """

    dtype: str
    contexts: list[int]
    itl_ms: list[list[float]]
    reference_itl_ms: list[list[float]]
    intercept_ms: float
    intercept_ms_se: float
    slope_us_per_token: float
    slope_us_per_token_se: float
    reference_intercept_ms: float
    reference_slope_us_per_token: float
    reference_slope_us_per_token_se: float | None = None
    store_us_per_token: float | None
    reference_store_us_per_token: float | None
    held_bytes: list[int]
    reference_held_bytes: list[int]
    pays_from_tokens: int | None
    pays: str


class Accuracy(Struct, frozen=True, kw_only=True):
    """A format beside the run's own cache, on the same tokens of one text, every token given (teacher forcing).

    - `method`: how the cache is prepared beside rounding: hadamard, calibrated, layers left whole; None for none.
    - KL: of the next token's distribution from the reference's, in nats. `top1_agreement`: share of the tokens whose
      likeliest next token is the reference's.
    - `greedy_agreement_tokens`: how far greedy text stays the reference's, at most `greedy_tokens`.
    - `key_error`, `value_error`, `attention_error` by layer: |x - reference| / |reference|, of what is stored of the
      same K and V, and of attention over it by the same queries; empty where a layer keeps latents.
    - `speed`: None where it was not measured.
    - `kl_saved`: of a case with layers left whole, by how much its KL is below that of the format's own case on the
      tokens that both read.
    - `trimmed`: what the time budget left out, in words; never a format.
    - `*_se`: standard errors over blocks of tokens, or over prompts; None of a single one.
    """

    kv_cache_dtype: str
    method: str | None
    reference: str
    kv_bytes_per_token: int
    tokens: int
    perplexity: float
    perplexity_se: float | None
    reference_perplexity: float
    perplexity_change: float
    perplexity_change_se: float | None
    kl_mean: float
    kl_mean_se: float | None
    kl_p99: float
    kl_max: float
    top1_agreement: float
    top1_agreement_se: float | None
    greedy_agreement_tokens: float
    greedy_agreement_tokens_se: float | None
    greedy_tokens: int
    key_error: list[float]
    value_error: list[float]
    attention_error: list[float]
    verdict: str
    text_sha256: str
    speed: CacheSpeed | None = None
    trimmed: list[str] = msgspec.field(default_factory=list)
    kl_saved: float | None = None
    kl_saved_se: float | None = None
