"""vLLM's budget, tensor by tensor: hand-worked numbers, each beside the log line that it comes near."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvtool.catalog.gpus import find_gpu
from kvtool.catalog.models_yaml import load_catalogue
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.vllm.memory import captured, estimates, graphs_bytes, stage_estimates
from kvtool.sizing.fit import BatchLimits
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.weights import weigh
from kvtool.system.errors import KvtoolError
from kvtool.units import GIB, MIB

CATALOGUE = load_catalogue()
LLAMA = CATALOGUE.get("llama-3.1-8b")
H100 = find_gpu("h100-sxm-80gb")
LIMITS = BatchLimits(tokens=8192, sequences=1024)
HIDDEN, SAMPLED, LOGITS = 8192 * 4096 * 2, 2 * 1024 * 4096 * 2, 1024 * 128256  # bytes, bytes, elements


def activation(version: str, name: str = "llama-3.1-8b", limits: BatchLimits = LIMITS, **options: object) -> int:
    start = EngineOptions(name="vllm", version=version, **options)  # type: ignore[arg-type]
    return estimates(weigh(CATALOGUE.get(name)), H100, start, limits, max_model_len=8192).activation.bytes


def test_the_triton_sampler_holds_four_copies_of_the_logits_and_a_row_an_sm() -> None:
    """bf16 logits 2, fp32 4, probabilities 4, noise 4; 132 rows of fp32; the log of 0.19 has 1.89 GiB."""
    by_hand = HIDDEN + SAMPLED + LOGITS * (2 + 4 + 4 + 4) + 132 * 128256 * 4 + 32 * MIB
    assert activation("0.19") == by_hand
    assert round(by_hand / GIB, 2) == 1.88


def test_sorting_holds_indices_too() -> None:
    """0.16: values 4, indices 8, segment indices 8, and cub's copies 12 beside logits and fp32."""
    assert activation("0.16") == HIDDEN + SAMPLED + LOGITS * (2 + 4 + 32) + 32 * MIB


def test_the_samplers_term_scales_with_sequences() -> None:
    few = activation("0.19", limits=BatchLimits(tokens=8192, sequences=512))
    assert activation("0.19") - few == SAMPLED // 2 + LOGITS // 2 * 14


def test_the_second_runner_holds_the_logits_alone_so_that_the_forward_pass_is_what_counts() -> None:
    """Three hidden states, attention's output, and gate, up and product of 14,336."""
    assert activation("0.25") == 4 * HIDDEN + 8192 * 3 * 14336 * 2 + 32 * MIB


def test_fused_experts_keep_their_workspace_beside_the_sampler() -> None:
    """8,192 tokens x 6 experts x (2,048 + 2 x 1,408) x 2 B; the log of 0.19 has 1.93 GiB in all."""
    kept = 8192 * 6 * (2048 + 2816) * 2
    sampler = 1024 * 102400 * 14 + 132 * 102400 * 4 + 8192 * 2048 * 2 + 2 * 1024 * 2048 * 2
    assert activation("0.19", "deepseek-v2-lite") == kept + sampler + 32 * MIB
    assert activation("0.12", "deepseek-v2-lite") < activation("0.19", "deepseek-v2-lite") + 3 * GIB


def test_images_stay_until_the_profile_is_over() -> None:
    """32 images of 3 x 896 x 896, and 8,192 tokens of 5,376 that they become; none where none may come."""
    images = 32 * (3 * 896 * 896 + 256 * 5376) * 2
    limited = activation("0.19", "gemma-3-27b-it", limit_mm_per_prompt='{"image": 0}')
    assert activation("0.19", "gemma-3-27b-it") - limited == images


@pytest.mark.parametrize("text", ["x", "[1]", '{"image": "1"}', "[" * 100_000])
def test_limits_of_images_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(KvtoolError, match="must be counts, as"):
        _ = EngineOptions(name="vllm", limit_mm_per_prompt=text).profiles_images


@pytest.mark.parametrize(("version", "graphs"), [("0.19", False), ("0.20", True), ("0.25", False), ("0.33", True)])
def test_graphs_are_subtracted_where_the_release_does(version: str, graphs: bool) -> None:
    """0.20 by default; the second runner, which runs Llama from 0.23, estimates none before 0.29."""
    found = estimates(weigh(LLAMA), H100, EngineOptions(name="vllm", version=version), LIMITS, max_model_len=8192)
    assert (found.graphs.bytes > 0) == graphs
    eager = EngineOptions(name="vllm", version=version, cuda_graphs=False)
    assert estimates(weigh(LLAMA), H100, eager, LIMITS, max_model_len=8192).graphs.bytes == 0


def test_graphs_are_as_many_as_sequences_decode() -> None:
    """1, 2, 4, 8 .. 248, 256 .. 512: 51 sizes for 1,024 sequences and 35 of decodes for 256, as "FULL 35/35" in logs;
    of 32 sequences 11 and 7, as a start of Qwen3-0.6B captured, estimated at 0.08 GiB (the log of a public benchmark).
    """
    counts = {n: captured(BatchLimits(tokens=8192, sequences=n)) for n in (1024, 256, 32, 1)}
    assert [(found.mixed, found.decodes) for found in counts.values()] == [(51, 51), (51, 35), (11, 7), (2, 1)]
    small = graphs_bytes(CATALOGUE.get("qwen3-0.6b"), Parallel(), counts[32])
    assert small / GIB == pytest.approx(0.08, abs=0.01)
    drafting = captured(BatchLimits(tokens=8192, sequences=8), drafted=3)
    assert (drafting.mixed, drafting.decodes) == (11, 7)  # 32 tokens decode at once


@pytest.mark.parametrize(
    ("name", "sequences", "gib"),
    [
        ("qwen3-4b", 256, 0.42),  # "CUDA graph pool memory: 0.22 GiB (actual), 0.42 GiB (estimated)"
        ("llama-3.1-8b", 1024, 0.50),  # of 1.44 GiB of peak activation, 0.94 of which are the forward pass
    ],
)
def test_the_second_runner_extrapolates_decodes_alone(name: str, sequences: int, gib: float) -> None:
    """The two starts that it is fitted to."""
    graphs = captured(BatchLimits(tokens=8192, sequences=sequences), second_runner=True)
    assert graphs_bytes(CATALOGUE.get(name), Parallel(), graphs) / GIB == pytest.approx(gib, abs=0.06)


def test_a_stage_before_the_last_samples_nothing() -> None:
    start = EngineOptions(name="vllm", version="0.19", parallel=Parallel(pp=2))
    first, last = (
        stage_estimates(weigh(LLAMA), H100, start, LIMITS, max_model_len=8192, last_stage=which)
        for which in (False, True)
    )
    assert first.activation.bytes == 6 * HIDDEN + 8192 * 3 * 14336 * 2 + 32 * MIB
    assert last.activation.bytes == activation("0.19") + 2 * HIDDEN


def test_a_card_before_hopper_has_a_small_workspace_and_no_wide_margin_is_hidden() -> None:
    a100 = find_gpu("a100-sxm-80gb")
    start = EngineOptions(name="vllm", version="0.19", parallel=Parallel(tp=2))
    found = estimates(weigh(LLAMA), a100, start, LIMITS, max_model_len=8192)
    assert "not on this card" in found.runtime.text
    assert found.runtime.margin_bytes >= GIB // 4
    assert found.runtime.bytes < estimates(weigh(LLAMA), H100, start, LIMITS, max_model_len=8192).runtime.bytes


def test_rows_of_logits_that_are_not_aligned_take_more() -> None:
    odd = replace(LLAMA, vocab_size=49155)
    start = EngineOptions(name="vllm", version="0.19")
    more = [estimates(weigh(model), H100, start, LIMITS, max_model_len=8192).runtime.bytes for model in (odd, LLAMA)]
    assert round((more[0] - more[1]) / GIB, 2) == 0.21
