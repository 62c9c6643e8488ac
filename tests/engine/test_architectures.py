"""Every family against transformers: fp32 logits of prefill and of decode, however the work is cut and shared."""

from __future__ import annotations

import pytest
import torch

from tests.engine.conftest import SaveTiny
from tests.engine.running import agreement, engine_of, generate, largest_difference, load, prompt
from tests.engine.tiny import CONFIGS

TOLERANCE = 1e-4
every_model = pytest.mark.parametrize("name", CONFIGS)
one_of_each_attention = pytest.mark.parametrize("name", ["llama-3-gqa", "mistral-window", "deepseek-v3-yarn"])


@every_model
@pytest.mark.parametrize("block_size", [16, 64])
def test_a_ragged_batch_has_the_logits_of_transformers(tiny: SaveTiny, name: str, block_size: int) -> None:
    reference = tiny(name)
    engine = engine_of(load(reference.folder, block_size=block_size))
    sequences = generate(engine, [prompt(length) for length in (1, 15, 16, 17, 90)], max_tokens=6)
    assert max(largest_difference(reference, sequence) for sequence in sequences) < TOLERANCE


@every_model
def test_chunks_beside_decodes_change_nothing(tiny: SaveTiny, name: str) -> None:
    reference = tiny(name)
    engine = engine_of(load(reference.folder), max_num_batched_tokens=7)
    sequences = generate(engine, [prompt(length) for length in (3, 40, 17)], max_tokens=8)
    assert max(largest_difference(reference, sequence) for sequence in sequences) < TOLERANCE


@every_model
def test_a_cached_prefix_changes_nothing(tiny: SaveTiny, name: str) -> None:
    reference = tiny(name)
    engine = engine_of(load(reference.folder))
    shared = prompt(50)
    first, second = (generate(engine, [shared + prompt(9, seed)], max_tokens=4)[0] for seed in (1, 2))
    assert (first.cached_tokens, second.cached_tokens) == (0, 48)
    assert max(largest_difference(reference, sequence) for sequence in (first, second)) < TOLERANCE


@every_model
def test_a_preempted_sequence_is_computed_again_to_the_same_tokens(tiny: SaveTiny, name: str) -> None:
    reference = tiny(name)
    engine = engine_of(load(reference.folder), num_pages=8)
    sequences = generate(engine, [prompt(30, seed) for seed in range(3)], max_tokens=24)
    assert sum(sequence.num_preemptions for sequence in sequences) > 0
    assert max(largest_difference(reference, sequence) for sequence in sequences) < TOLERANCE


@one_of_each_attention
@pytest.mark.parametrize("kv_cache_dtype", ["fp8", "fp8_e5m2", "bf16", "int8_per_token_head"])
def test_a_narrow_cache_reads_the_same_in_prefill_and_decode(tiny: SaveTiny, name: str, kv_cache_dtype: str) -> None:
    """What is read is what was stored, so computing a sequence at once or token by token differs by rounding alone."""
    loaded = load(tiny(name).folder, kv_cache_dtype=kv_cache_dtype)
    sequences = generate(engine_of(loaded), [prompt(33), prompt(7)], max_tokens=9)
    for sequence in sequences:
        again = generate(engine_of(loaded, max_num_batched_tokens=10), [sequence.token_ids[:-1]], max_tokens=1)[0]
        torch.testing.assert_close(again.logits[0], sequence.logits[-1], atol=1e-3, rtol=0)


@one_of_each_attention
@pytest.mark.parametrize(("kv_cache_dtype", "closeness"), [
    *(("bf16", 0.9999), ("fp8", 0.99), ("fp8_e5m2", 0.93)),
    *(("fp8_per_token_head", 0.99), ("int8_per_token_head", 0.999)),
])  # fmt: skip
def test_a_narrow_cache_stays_close_to_the_reference(
    tiny: SaveTiny, name: str, kv_cache_dtype: str, closeness: float
) -> None:
    reference = tiny(name)
    engine = engine_of(load(reference.folder, kv_cache_dtype=kv_cache_dtype))
    found = generate(engine, [prompt(60, seed) for seed in range(6)], max_tokens=1)
    cosines = [
        torch.cosine_similarity(sequence.logits[0], reference.logits(sequence.token_ids[:-1])[-1], dim=0)
        for sequence in found
    ]
    assert float(torch.stack(cosines).median()) > closeness  # the median: a rounding may send a token to another expert


@pytest.mark.parametrize("name", [
    *("llama-3-gqa", "llama-biased", "qwen2", "qwen3", "deepseek-v2-biased", "gemma2", "gemma3", "gpt-oss", "phi3"),
    *("phi3-longrope", "olmo2", "smollm3", "gpt2", "opt"),
])  # fmt: skip
def test_bf16_is_as_close_as_bf16_can_be(tiny: SaveTiny, name: str) -> None:
    """Packed products, biases and gates: logits differ from those of fp32 by a few percent of their spread."""
    reference = tiny(name)
    engine = engine_of(load(reference.folder, dtype="bf16"))
    errors = []
    for sequence in generate(engine, [prompt(length) for length in (2, 20, 64, 65, 70)], max_tokens=4):
        expected = reference.logits(sequence.token_ids[:-1])[sequence.prompt_tokens - 1 :]
        difference = torch.stack(sequence.logits).float() - expected
        errors.append(difference.square().mean().sqrt() / expected.std())
    assert float(torch.stack(errors).median()) < 0.04


@every_model
def test_bf16_gives_the_tokens_of_transformers(tiny: SaveTiny, name: str) -> None:
    reference = tiny(name)
    sequences = generate(
        engine_of(load(reference.folder, dtype="bf16")), [prompt(n) for n in (2, 20, 65)], max_tokens=8
    )
    shares = [agreement(reference, sequence) for sequence in sequences]
    has_experts = any(hasattr(CONFIGS[name], key) for key in ("num_local_experts", "moe_intermediate_size"))
    assert sum(shares) / len(shares) >= (0.8 if has_experts else 1.0)  # a rounding may send a token to another expert
