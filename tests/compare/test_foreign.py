"""Other tools' results beside ours: each metric under one definition, whatever the tool calls it.

Files of tests/data/foreign are what the tools wrote: vLLM 0.32.0 (`vllm bench serve --save-detailed`), GuideLLM 0.8.1,
AIPerf 0.13.0 against a llama.cpp server on two cores; llama_bench.json has the figures that llama.cpp's
tools/llama-bench/README.md shows.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from kvtool.compare.documents import NamedDocument, compare_documents
from kvtool.compare.foreign.foreign import is_foreign, read_foreign
from kvtool.compare.sources import are_documents, read_bench
from kvtool.results import EndpointCase
from kvtool.system.errors import KvtoolError

FILES = Path(__file__).parents[1] / "data" / "foreign"
VLLM, GUIDELLM, AIPERF, LLAMA = (
    FILES / name for name in ("vllm_bench_serve.json", "guidellm.json", "aiperf.json", "llama_bench.json")
)


def loaded(path: Path) -> Any:
    return json.loads(path.read_text())


def only(document: NamedDocument) -> EndpointCase:
    (case,) = document.document.cases
    assert isinstance(case, EndpointCase)
    return case


def test_vllm_bench_serve_means_what_we_mean() -> None:
    """Its own medians of TTFT, TPOT and ITL come out of its requests under our definitions."""
    found, case = loaded(VLLM), only(read_bench(str(VLLM)))
    metrics = case.metrics
    assert metrics.ttft_ms is not None
    assert metrics.tpot_ms is not None
    assert metrics.ttft_ms.p50 == pytest.approx(found["median_ttft_ms"])
    assert metrics.tpot_ms.p50 == pytest.approx(found["median_tpot_ms"])
    assert metrics.itl_ms is not None
    assert metrics.itl_ms.p50 == pytest.approx(found["median_itl_ms"])
    assert case.inputs["concurrency"] == found["max_concurrency"]
    assert case.inputs["request_rate"] is None
    assert len(case.samples) == found["completed"]


def test_guidellm_has_our_tpot_under_another_name() -> None:
    """And what it calls time per output token is e2e / n."""
    benchmark, case = loaded(GUIDELLM)["benchmarks"][0], only(read_bench(str(GUIDELLM)))
    metrics = benchmark["metrics"]
    assert case.metrics.ttft_ms is not None
    assert case.metrics.tpot_ms is not None
    assert case.metrics.ttft_ms.mean == pytest.approx(metrics["time_to_first_token_ms"]["successful"]["mean"])
    assert case.metrics.tpot_ms.mean == pytest.approx(metrics["inter_token_latency_ms"]["successful"]["mean"])
    ntpot = [1e3 * sample.e2e_s / sample.output_tokens for sample in case.samples]
    assert mean(ntpot) == pytest.approx(metrics["time_per_output_token_ms"]["successful"]["mean"])
    assert metrics["time_per_output_token_ms"]["successful"]["mean"] != pytest.approx(
        case.metrics.tpot_ms.mean, rel=0.05
    )
    assert case.inputs["concurrency"] == 1


def test_aiperf_is_read_from_its_summaries() -> None:
    found, case = loaded(AIPERF), only(read_bench(str(AIPERF)))
    assert case.metrics.ttft_ms is not None
    assert case.metrics.tpot_ms is not None
    assert case.metrics.ttft_ms.p50 == found["time_to_first_token"]["p50"]
    assert case.metrics.tpot_ms.p99 == found["inter_token_latency"]["p99"]
    assert (case.inputs["concurrency"], case.inputs["input_len"], case.inputs["output_len"]) == (1, 64, 8)
    assert case.metrics.itl_ms is not None
    assert (case.metrics.itl_ms.p50, case.metrics.itl_ms.n) == (found["inter_chunk_latency"]["p50"], 28)
    assert case.endpoint.requests == found["request_count"]["avg"]
    assert case.samples == []


def test_llama_bench_joins_a_prompt_and_what_is_generated_behind_it() -> None:
    tests = loaded(LLAMA)
    assert [test["n_prompt"] for test in tests] == [512, 0]
    joined = [tests[0], tests[1] | {"n_depth": 512}, tests[0] | {"n_gen": 64}]
    foreign = read_foreign(joined, "bench.json")
    (case,) = foreign.cases
    assert (case.inputs["input_len"], case.inputs["output_len"]) == (512, 128)
    assert case.metrics.prefill_tokens_per_s == 7100.002165
    assert case.metrics.decode_tokens_per_s == 118.881588
    assert case.metrics.tpot_ms is not None
    assert case.metrics.tpot_ms.mean == pytest.approx(1000 / 118.881588, rel=1e-3)
    assert case.metrics.ttft_ms is None
    assert any("1 tests of prompts and generation together" in remark for remark in foreign.remarks)
    apart = read_foreign(tests, "bench.json").cases
    assert {(case.inputs["input_len"], case.inputs["output_len"]) for case in apart} == {(512, None), (0, 128)}


def test_a_comparison_says_how_words_were_read() -> None:
    ours = read_bench(str(VLLM))
    document = compare_documents(ours, [NamedDocument("again", ours.document, ("a remark",))])
    assert "again: a remark" in document.warnings
    assert {row.metric for row in document.rows} == {"ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"}
    assert not any("environment" in warning for warning in document.warnings)


def test_every_file_is_a_document() -> None:
    assert are_documents([str(path) for path in (VLLM, GUIDELLM, AIPERF, LLAMA)])
    assert not is_foreign({"model_type": "llama"})
    assert not is_foreign([1, 2])


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        (VLLM, {"ttfts": None}, "has no list 'ttfts'"),
        (VLLM, {"itls": []}, "lists of its requests that differ in length"),
        (VLLM, {"input_lens": [-1]}, "has input_lens '-1': a number is needed"),
        (GUIDELLM, {"benchmarks": []}, "has no benchmark"),
        (AIPERF, {"time_to_first_token": None}, "run aiperf with --streaming"),
        (AIPERF, {"request_latency": {"unit": "tokens"}}, "has no unit of time"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(KvtoolError) as told:
        read_foreign(loaded(path) | change, "a.json")
    assert words in str(told.value)


def test_a_summary_without_requests_is_refused() -> None:
    found = loaded(VLLM)
    del found["ttfts"], found["itls"]
    with pytest.raises(KvtoolError, match="write it with --save-detailed"):
        read_foreign(found, "a.json")
    with pytest.raises(KvtoolError, match="run -p and -n apart"):
        read_foreign([test | {"n_prompt": 8, "n_gen": 8} for test in loaded(LLAMA)], "a.json")
