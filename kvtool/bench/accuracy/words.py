"""The figures of one format out of all that was measured of it, and what they say."""

from __future__ import annotations

from math import exp

import numpy as np

from kvtool.bench.accuracy.layers import LayerErrors
from kvtool.bench.accuracy.methods import Method
from kvtool.bench.accuracy.tokens import Mean, Moved, mean_of, num_blocks, verdict
from kvtool.results import Accuracy, CacheSpeed


def accuracy_of(
    method: Method,
    reference: Method,
    found: list[Moved],
    greedy: list[int],
    errors: LayerErrors,
    *,
    greedy_tokens: int,
    sha256: str,
    speed: CacheSpeed | None,
    trimmed: list[str],
    unspared: list[Moved] | None = None,
) -> Accuracy:
    """The case's own figures; standard errors are over blocks of tokens, those of greedy text over prompts. `unspared`:
    of the same format with no layer left whole."""
    kl, agrees = mean_of([each.kl for each in found]), mean_of([each.agrees for each in found])
    nll, own = mean_of([each.reference_nll for each in found]), mean_of([each.nll for each in found])
    change = added_nll(found)
    kls = np.concatenate([each.kl for each in found])
    saved = None if unspared is None else kl_saved(found, unspared)
    return Accuracy(
        kv_cache_dtype=method.cache_format.base_name,
        method=method.description,
        reference=reference.cache_format.name,
        kv_bytes_per_token=sum(spec.bytes_per_token for spec in method.specs),
        tokens=len(kls),
        perplexity=exp(own.value),
        perplexity_se=scaled(own, exp(own.value)),
        reference_perplexity=exp(nll.value),
        perplexity_change=exp(own.value) - exp(nll.value),
        perplexity_change_se=scaled(change, exp(own.value)),
        kl_mean=kl.value,
        kl_mean_se=kl.se,
        kl_p99=float(np.quantile(kls, 0.99)),
        kl_max=float(kls.max()),
        top1_agreement=agrees.value,
        top1_agreement_se=agrees.se,
        greedy_agreement_tokens=float(np.mean(greedy)),
        greedy_agreement_tokens_se=float(np.std(greedy, ddof=1) / len(greedy) ** 0.5) if len(greedy) > 1 else None,
        greedy_tokens=greedy_tokens,
        key_error=errors.key,
        value_error=errors.value,
        attention_error=errors.attention,
        verdict=words_of(found, reference.cache_format.name),
        text_sha256=sha256,
        speed=speed,
        trimmed=trimmed,
        kl_saved=None if saved is None else saved.value,
        kl_saved_se=None if saved is None else saved.se,
    )


def kl_saved(found: list[Moved], unspared: list[Moved]) -> Mean:
    """By how much KL is below that of others, over the windows that both have."""
    both = zip(found, unspared, strict=False)
    return mean_of([other.kl - own.kl for own, other in both])


def added_nll(found: list[Moved]) -> Mean:
    """Surprise that the format adds to each token: paired, so that the text's own ups and downs are not in it."""
    return mean_of([each.nll - each.reference_nll for each in found])


def words_of(found: list[Moved], reference: str) -> str:
    """The verdict on what was read so far."""
    windows = [each.nll for each in found]
    return verdict(added_nll(found), num_blocks(windows), sum(map(len, windows)), reference)


def scaled(mean: Mean, factor: float) -> float | None:
    """A standard error in nats as one of the perplexity, to first order."""
    return None if mean.se is None else mean.se * factor
