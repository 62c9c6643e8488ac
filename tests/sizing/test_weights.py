from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from kvtool.catalog.headers import CheckpointHeader, TensorHeader
from kvtool.catalog.model import LayerBits, Quantisation
from kvtool.catalog.models_yaml import load_catalogue
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.weights import weigh, weight_format
from tests.sizing.example import DEEPSEEK_V3, LLAMA_8B

ONE = Parallel()
OUTER = 2 * 128_256 * 4_096  # Llama-3.1-8B's embedding and output head
DATA = Path(__file__).parents[1] / "data"
CATALOGUE = load_catalogue()


def checkpoint(*tensors: tuple[str, int]) -> CheckpointHeader:
    return CheckpointHeader(
        tuple(
            TensorHeader(name=str(i), dtype=dtype, shape=(), size_bytes=size_bytes, file=Path("x"))
            for i, (dtype, size_bytes) in enumerate(tensors)
        )
    )


def test_published_parameters_come_before_those_counted() -> None:
    counted, published = weigh(LLAMA_8B), weigh(replace(LLAMA_8B, params_total=8_000_000_000))
    assert counted.stored_bytes == 2 * 8_030_261_248
    assert counted.source == "8,030,261,248 parameters counted from the shape in bf16"
    assert published.stored_bytes == 16_000_000_000
    assert published.source == "8,000,000,000 published parameters in bf16"


def test_a_checkpoint_is_exact_unless_another_dtype_is_asked_for() -> None:
    header = checkpoint(("F8_E4M3", 8_000_000_000), ("BF16", 60_522_496))
    exact = weigh(LLAMA_8B, checkpoint=header)
    assert (exact.stored_bytes, exact.format.name) == (8_060_522_496, "fp8")
    assert exact.format.bits == 8_060_522_496 * 8 / 8_030_261_248
    assert weigh(LLAMA_8B, "fp8", checkpoint=header).stored_bytes == 8_030_261_248 + OUTER
    assert weigh(LLAMA_8B, checkpoint=checkpoint(("F32", 123))).format.bits == 32


@pytest.mark.parametrize(("dtype", "bytes_a_parameter"), [("fp32", 4), ("bfloat16", 2), ("fp8", 1), ("int4", 0.5)])
def test_weight_dtypes(dtype: str, bytes_a_parameter: float) -> None:
    """What an engine quantises as it loads leaves embedding and output head at the model's dtype."""
    whole = OUTER * 2 if bytes_a_parameter < 2 else OUTER * bytes_a_parameter
    assert weigh(LLAMA_8B, dtype).stored_bytes == (8_030_261_248 - OUTER) * bytes_a_parameter + whole


STARTS = [*csv.DictReader((DATA / "vllm_quantised_weights.csv").read_text().splitlines()[1:])]


@pytest.mark.parametrize("start", STARTS, ids=lambda start: f"{start['model']}-tp{start['tp']}")
def test_quantised_weights_are_what_vllm_loaded(start: dict[str, str]) -> None:
    """The name alone, without a network: its base, and what such a repository stores."""
    model = CATALOGUE.find(start["model"]) or CATALOGUE.find_variant(start["model"])
    assert model is not None
    weights = weigh(model, start["weight_dtype"])
    predicted = weights.bytes_per_gpu(Parallel(tp=int(start["tp"])))
    assert predicted is not None
    assert predicted / 2**30 == pytest.approx(float(start["weights_gib"]), rel=0.01)


def test_layers_that_are_stored_in_different_ways_count_each_for_itself() -> None:
    """Half of the layers' attention in fp8, all MLPs in 4.5 bits, the rest in bf16."""
    layers = [LayerBits(mixer=8 if index < 16 else None, dense=4.5, experts=0) for index in range(32)]
    stored = Quantisation(method="modelopt", bits_per_weight=None, layers=tuple(layers), head_bits=4.5)
    weights = weigh(replace(LLAMA_8B, quantisation=stored))
    mixer = 2 * 4096 * 4096 + 2 * 4096 * 1024
    rest = 3 * 4096 * 14336 + 2 * 4096
    expected = 16 * mixer * (1 + 2) + 32 * rest * 4.5 / 8 + OUTER / 2 * (2 + 4.5 / 8) + 2 * 4096
    assert weights.stored_bytes == pytest.approx(expected, abs=1)
    assert weights.bytes_per_gpu(Parallel(tp=2)) == pytest.approx(expected / 2, abs=1)


def test_a_quantised_checkpoint_keeps_embedding_and_head() -> None:
    quantised = replace(LLAMA_8B, quantisation=Quantisation(method="gptq", bits_per_weight=4.25))
    outer = 2 * 128256 * 4096
    assert weight_format(quantised).name == "gptq"
    assert weigh(quantised).stored_bytes == 2 * outer + (8_030_261_248 - outer) * 4.25 / 8


def test_unknown_weights_say_why() -> None:
    weights = weigh(replace(LLAMA_8B, architecture="nobody-knows"))
    assert (weights.stored_bytes, weights.bytes_per_gpu(ONE), weights.read_bytes_per_step(1, ONE)) == (None, None, None)
    assert weights.source == "unknown: the parameter layout of nobody-knows is not known"


def test_a_step_reads_all_but_the_input_embedding() -> None:
    assert weigh(LLAMA_8B).read_bytes_per_step(1, ONE) == 2 * (8_030_261_248 - 128256 * 4096)
    assert weigh(LLAMA_8B).read_bytes_per_step(64, Parallel(tp=2)) == 8_030_261_248 - 128256 * 4096


def test_a_step_reads_the_experts_it_touches() -> None:
    weights = weigh(DEEPSEEK_V3, "fp8")
    assert weights.params is not None
    one, many = (weights.read_bytes_per_step(batch, ONE) for batch in (1, 100_000))
    dense = weights.params.dense_read + weights.params.head  # the head is read in bf16
    assert one == dense + weights.params.experts * 8 // 256
    assert many == dense + weights.params.experts


def test_experts_are_dealt_out_over_replicas() -> None:
    weights = weigh(DEEPSEEK_V3, "fp8")
    assert weights.params is not None
    assert weights.stored_bytes is not None
    rest = weights.stored_bytes - weights.params.experts
    by_tp, by_ep = Parallel(tp=8, dp=4), Parallel(tp=8, dp=4, ep=32)
    assert weights.bytes_per_gpu(by_tp) == pytest.approx((rest + weights.params.experts) / 8, abs=2)
    assert weights.bytes_per_gpu(by_ep) == pytest.approx(rest / 8 + weights.params.experts / 32, abs=2)


def test_the_fullest_stage_has_the_output_head_or_a_layer_more() -> None:
    """Llama-3.1-8B in bf16: layers of 218,112,000 parameters, embedding and head of 525,336,576, a norm of 4096."""
    layer, outer = 218_112_000, 525_336_576
    weights = weigh(LLAMA_8B)
    assert weights.bytes_per_gpu(Parallel(pp=2)) == 2 * (16 * layer + outer + 4096)
    assert weights.bytes_per_gpu(Parallel(pp=4, tp=2)) == 8 * layer + outer + 4096
    assert weights.bytes_per_gpu(Parallel(pp=3)) == 2 * (11 * layer + outer)  # 11, 11 and 10 layers
    tied = weigh(replace(LLAMA_8B, tie_word_embeddings=True))
    assert tied.bytes_per_gpu(Parallel(pp=2)) == weights.bytes_per_gpu(Parallel(pp=2))
    assert tied.bytes_per_gpu(ONE) == tied.stored_bytes


def test_dp_attention_copies_attention_alone() -> None:
    """DeepSeek-V3: all 8 ranks of dp attention hold whole attention layers, an eighth of the rest."""
    weights = weigh(DEEPSEEK_V3, "fp8")
    params = weights.params
    assert params is not None
    split, copied = Parallel(tp=8), Parallel(tp=8, dp=8, dp_attention=True)
    whole = sum(layer.mixer for layer in params.by_layer) + 2 * params.embedding
    total = params.total + 2 * params.embedding  # embedding and head stay in bf16
    assert weights.bytes_per_gpu(split) == pytest.approx(total / 8, abs=1)
    assert weights.bytes_per_gpu(copied) == pytest.approx(whole + (total - whole) / 8, abs=1)
    assert copied.num_gpus == split.num_gpus == 8
    unsplit = weigh(replace(LLAMA_8B, architecture=None, params_total=8_000_000_000))
    assert unsplit.bytes_per_gpu(copied) is None


def test_dense_weights_without_a_split_are_read_whole_and_experts_are_not_guessed() -> None:
    dense = replace(LLAMA_8B, architecture=None, params_total=8_000_000_000)
    assert weigh(dense).read_bytes_per_step(1, ONE) == 16_000_000_000
    sparse = replace(DEEPSEEK_V3, architecture=None, params_total=671_000_000_000)
    assert weigh(sparse).read_bytes_per_step(1, ONE) is None
