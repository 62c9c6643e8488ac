"""What the accuracy part of `kvtool bench` found of one cache format on one text."""

from __future__ import annotations

from kvtool.results.document import Struct


class Accuracy(Struct, frozen=True, kw_only=True):
    """A format beside the run's own cache, on the same tokens of one text, every token given (teacher forcing).

    - `method`: how the cache is prepared beside rounding: hadamard, calibrated, layers left whole; None for none.
    - KL: of the next token's distribution from the reference's, in nats. `top1_agreement`: share of the tokens whose
      likeliest next token is the reference's.
    - `greedy_agreement_tokens`: how far greedy text stays the reference's, at most `greedy_tokens`.
    - `key_error`, `value_error`, `attention_error` by layer: |x - reference| / |reference|, of what is stored of the
      same K and V, and of attention over it by the same queries; empty where a layer keeps latents.
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
