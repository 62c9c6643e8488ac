"""What accuracy and fragmentation become: tables in 80 columns, panels, sentences."""

from __future__ import annotations

import io

import pytest

from kvtool.bench.cases.fragmentation import FragmentationPart
from kvtool.report.bench.bench import bench_html, bench_rows, print_bench
from kvtool.report.bench.charts import bench_panels, chart
from kvtool.report.bench.findings import findings
from kvtool.report.files import csv_bytes, png_bytes
from kvtool.report.terminal import Terminal
from kvtool.results import Accuracy, AccuracyCase, BenchDocument, Check, Memory, Metrics, Roofline, StepBytes


def accuracy_case(name: str, kl: float, verdict: str) -> AccuracyCase:
    return AccuracyCase(
        name=f"accuracy/{name}",
        inputs={"model": "tiny", "kv_cache_dtype": name},
        samples=[],
        metrics=Metrics.none(),
        bytes=StepBytes(weights_read=1, kv_read=1, kv_written=1, other=0, prefill_flops=1, decode_flops=1),
        roofline=Roofline(),
        memory=Memory(
            kv_predicted_bytes=1, kv_allocated_bytes=1, kv_pool_bytes=None, kv_waste_bytes=0, peak_bytes=None
        ),
        check=Check(),
        accuracy=Accuracy(
            kv_cache_dtype=name,
            method=None,
            reference="bf16",
            kv_bytes_per_token=11520,
            tokens=2044,
            perplexity=22.5,
            perplexity_se=0.9,
            reference_perplexity=20.0,
            perplexity_change=2.5,
            perplexity_change_se=0.1,
            kl_mean=kl,
            kl_mean_se=kl / 10,
            kl_p99=kl * 10,
            kl_max=kl * 20,
            top1_agreement=0.9,
            top1_agreement_se=0.01,
            greedy_agreement_tokens=12.5,
            greedy_agreement_tokens_se=1.0,
            greedy_tokens=32,
            key_error=[0.1, 0.3],
            value_error=[0.1, 0.1],
            attention_error=[0.2, 0.4],
            verdict=verdict,
            text_sha256="ab" * 32,
        ),
    )


@pytest.fixture(scope="module")
def document() -> BenchDocument:
    part = FragmentationPart(num_prompts=20, pool_tokens=2048, max_model_len=512, prefix_len=32)
    cases = [part.case_of(arm, 100, 16, {"model": "tiny"}, 0) for arm in part.arms(16)]
    same = accuracy_case("fp8", 1e-3, "not distinguishable from bf16 at this sample")
    loses = accuracy_case("int4", 2e-1, "loses")
    return BenchDocument(environment={}, definitions={}, assumptions=[], cases=[same, loses, *cases])


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_and_say_the_verdict(document: BenchDocument, width: int) -> None:
    console = Terminal(width=width, file=io.StringIO(), record=True, color_system=None)
    print_bench(document, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "1.0e-03 ± 1e-04" in text
    assert "no loss shown" in text
    assert "contiguous, rounded up" in text


def test_sentences_name_formats_by_verdict_and_what_pages_are_worth(document: BenchDocument) -> None:
    told = findings(document)
    assert "Loses: int4 (perplexity +12 %, KL 2.0e-01)." in told
    assert any(line.startswith("Not distinguishable from bf16 at this sample: fp8") for line in told)
    assert any(line.startswith("Contiguous pieces of the longest request leave") for line in told)


def test_panels_csv_and_page(document: BenchDocument) -> None:
    panels = bench_panels(document)
    assert [panel.title for panel in panels] == [
        "What smaller caches cost",
        "What smaller caches cost: attention by layer",
        "Where the pool goes, by allocator",
    ]
    assert png_bytes(chart(panels)).startswith(b"\x89PNG")
    rows = bench_rows(document)
    assert rows[0]["accuracy.kl_mean"] == 1e-3
    assert rows[-1]["fragmentation.allocator"] == "shared"
    assert len(csv_bytes(rows).splitlines()) == 1 + len(document.cases)
    assert "Where the pool goes" in bench_html(document)
