"""Whether a start of llama.cpp or Ollama fits a card: its weights, caches, what it computes in, what stays free.

"llama_memory_breakdown_print: CUDA0 (RTX 4080 Laptop GPU) | 12281 = 5181 + (5831 = 1050 + 4480 + 300) + 1269" is a
public start of Qwen3-1.7B at its 40,960 tokens: MiB of model, context and compute.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kvtool.catalog.gpus import find_gpu
from kvtool.catalog.resolve import resolve_model
from kvtool.results import SizeRow
from kvtool.sizing.engines.llama_cpp import fullest_card
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.plan import make_plan
from kvtool.sizing.weights import weigh
from kvtool.sizing.words.remedies import remedies
from kvtool.units import GIB, MIB

LLAMA = resolve_model("llama-3.1-8b")
CARD = find_gpu("4090")


def row_of(name: str, context: int, batch_size: int = 1, **flags: Any) -> tuple[SizeRow, SizeOptions]:
    engine = EngineOptions(name=flags.pop("engine", "llama.cpp"), gpu=CARD, **flags)
    options = SizeOptions(contexts=(context,), batch_sizes=(batch_size,), gpu=CARD, engine=engine)
    return make_plan(resolve_model(name), options).row(context, batch_size), options


def test_context_and_compute_of_a_public_start() -> None:
    row, _ = row_of("qwen3-1.7b", 40960)
    assert row.kv.bytes_per_gpu == 4480 * MIB
    assert row.fit.activation_bytes is not None
    assert row.fit.activation_bytes // MIB == 300


def test_it_is_judged_by_all_of_the_card_and_not_by_a_share() -> None:
    row, _ = row_of("llama-3.1-8b", 8192)
    assert row.fit.usable_bytes == CARD.memory_bytes
    kept = {"llama.cpp": (457 + 1024) * MIB, "ollama": 457 * MIB}
    for engine, reserve in kept.items():
        assert row_of("llama-3.1-8b", 8192, engine=engine)[0].fit.reserve_bytes == reserve
    assert row_of("llama-3.1-8b", 8192, n_gpu_layers=33)[0].fit.reserve_bytes == 457 * MIB  # asked for: no --fit


def test_the_embedding_stays_on_the_cpu_and_layers_go_where_they_are_dealt() -> None:
    """128,256 rows of 4,096 in bf16 of 8.03 billion parameters; a head as large is on the last GPU."""
    outer, weights = 128256 * 4096 * 2, weigh(LLAMA)
    assert weights.stored_bytes is not None

    def on_card(**flags: Any) -> int:
        found = fullest_card(weights, EngineOptions(name="llama.cpp", max_model_len=8192, **flags)).weights_bytes
        assert found is not None
        return found

    whole = on_card()
    assert whole == pytest.approx(weights.stored_bytes - outer, abs=1)
    layer = (whole - outer) / 32
    assert on_card(n_gpu_layers=9) == pytest.approx(8 * layer + outer, abs=1)  # eight layers and the output
    assert on_card(tensor_split="3,1") == pytest.approx(25 * layer, abs=1)  # of 33: the output is on the other card


def test_a_batch_is_a_longer_context() -> None:
    one, _ = row_of("llama-3.1-8b", 4096)
    four, _ = row_of("llama-3.1-8b", 4096, batch_size=4)
    assert four.kv.bytes_per_gpu == 4 * one.kv.bytes_per_gpu == 4 * 512 * MIB


def test_what_would_make_it_fit_are_llama_cpps_own_flags() -> None:
    row, options = row_of("qwen3-32b", 8192)  # 61 GiB of weights on 24
    (ways,) = remedies(resolve_model("qwen3-32b"), options, [row])
    assert [way.split(":")[0] for way in ways] == ["--weight-dtype int4", "--tensor-split 1,1,1,1", "--n-gpu-layers 23"]
    for flags in ({"tensor_split": "1,1,1,1"}, {"n_gpu_layers": 23}):
        assert not row_of("qwen3-32b", 8192, **flags)[0].fit.missing_bytes
    assert row_of("qwen3-32b", 8192, n_gpu_layers=24)[0].fit.missing_bytes
    small = replace(options, weight_dtype="int4", contexts=(32768,))
    short = make_plan(resolve_model("qwen3-32b"), small).row(32768, 1)
    assert 2 * GIB < (short.fit.missing_bytes or 0) < 2.5 * GIB
    (ways,) = remedies(resolve_model("qwen3-32b"), small, [short])
    assert ways[0].startswith("--kv-cache-dtype q8_0")
