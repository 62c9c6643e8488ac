"""What accuracy and fragmentation become: tables in 80 columns, panels, sentences."""

from __future__ import annotations

import io
from typing import Any, TypeVar

import msgspec
import pytest

from kvtool.bench.cases.fragmentation import FragmentationPart
from kvtool.compare.documents import NamedDocument, compare_documents
from kvtool.report.bench.accuracy_charts import is_crowded
from kvtool.report.bench.bench import bench_html, bench_rows, print_bench
from kvtool.report.bench.charts import bench_panels, chart
from kvtool.report.bench.findings import findings
from kvtool.report.files import csv_bytes, png_bytes
from kvtool.report.terminal import Terminal
from kvtool.results import (
    Accuracy,
    AccuracyCase,
    BenchDocument,
    CacheSpeed,
    Check,
    Memory,
    Metrics,
    Roofline,
    StepBytes,
)
from kvtool.sizing.words.measured import measured_notes

Kind = TypeVar("Kind", bound=msgspec.Struct)


def filled(kind: type[Kind], **given: Any) -> Kind:
    """One of its kind, with 1 in all it must have that is not given."""
    needed = {field.name for field in msgspec.structs.fields(kind) if field.required}
    return kind(**dict.fromkeys(needed, 1) | given)


SPEED = filled(
    CacheSpeed,
    dtype="bf16",
    contexts=[256, 1024, 8192],
    itl_ms=[[20.0, 22.0], [21.0, 23.0], [25.0, 27.0]],
    reference_itl_ms=[[20.0, 20.0], [22.0, 22.0], [40.0, 40.0]],
    slope_us_per_token=0.7,
    slope_us_per_token_se=0.05,
    reference_slope_us_per_token=2.5,
    held_bytes=[1 << 20, 1 << 22, 1 << 25],
    reference_held_bytes=[1 << 21, 1 << 23, 1 << 26],
    pays="pays from 610 tokens",
)
SLOW = msgspec.structs.replace(
    SPEED,
    itl_ms=[[50.0] * 4, [70.0] * 4, [200.0] * 4],
    reference_itl_ms=[[20.0] * 4, [22.0] * 4, [40.0] * 4],
    pays="never pays here: to read a token takes 8.00 (7.00 to 9.00) times as long",
)


def accuracy_case(
    name: str, kl: float, verdict: str, speed: CacheSpeed | None = None, *, whole: str | None = None, **given: Any
) -> AccuracyCase:
    return AccuracyCase(
        name=f"accuracy/{name}" + ("/worst layers whole" if whole else ""),
        inputs={"model": "tiny", "kv_cache_dtype": name, "skip_layers": whole},
        samples=[],
        metrics=Metrics.none(),
        bytes=filled(StepBytes),
        roofline=Roofline(),
        memory=filled(Memory),
        check=Check(),
        accuracy=filled(
            Accuracy,
            kv_cache_dtype=name,
            method=f"layers {whole.replace(',', ', ')} whole" if whole else None,
            reference="bf16",
            tokens=2044,
            reference_perplexity=20.0,
            perplexity_change=2.5,
            perplexity_change_se=0.1,
            kl_mean=kl,
            kl_mean_se=kl / 10,
            greedy_tokens=32,
            key_error=[0.1, 0.3],
            value_error=[0.1, 0.1],
            attention_error=[0.2, 0.4],
            verdict=verdict,
            text_sha256="ab" * 32,
            speed=speed,
            **{"kv_bytes_per_token": 10000} | given,
        ),
    )


@pytest.fixture(scope="module")
def document() -> BenchDocument:
    part = FragmentationPart(num_prompts=20, pool_tokens=2048, max_model_len=512, prefix_len=32)
    cases = [part.case_of(arm, 100, 16, {"model": "tiny"}, 0) for arm in part.arms(16)]
    same = accuracy_case("fp8", 1e-3, "not distinguishable from bf16 at this sample", SPEED)
    loses = accuracy_case("int4", 2e-1, "loses", SLOW)
    spared = accuracy_case("int4", 5e-2, "loses", whole="0,1", kv_bytes_per_token=11500, kl_saved=15e-2)
    return BenchDocument(environment={}, definitions={}, assumptions=[], cases=[same, loses, spared, *cases])


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_and_say_the_verdict(document: BenchDocument, width: int) -> None:
    console = Terminal(width=width, file=io.StringIO(), record=True, color_system=None)
    print_bench(document, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "1.0e-03 ± 1e-04" in text
    assert "no loss shown" in text
    assert "contiguous, rounded up" in text
    assert "0.70 ± 0.05" in text
    assert "the median over 2 to 4 turns" in " ".join(text.split())
    assert any(line.split()[:5] == ["int4", "0,", "1", "+15%", "5.0e-02"] for line in text.splitlines())


def test_sentences_name_formats_by_verdict_and_what_pages_are_worth(document: BenchDocument) -> None:
    told = findings(document)
    assert f"In time: fp8 pays from 610 tokens; int4 {SLOW.pays}." in told
    assert "A step takes at most so many times as long as one of bf16: fp8 1.05 (at 256); int4 5.00 (at 8k)." in told
    assert (
        "Why: at 8k tokens 51% of a bf16 step (20.5 of 40.0 ms) goes with the context, and the rest with products that "
        "every format has: a cache of half the bytes can save 26% at most. It is read at 3.3 GB/s (bf16); 5.9 GB/s "
        "(fp8); 5.9 GB/s (int4)." in told
    )
    assert (
        "The layers that do most damage, left whole: int4 has 75% less KL with layers 0, 1, for 15% more bytes." in told
    )
    assert "Loses: int4 (perplexity +12 %, KL 2.0e-01)." in told
    assert any(line.startswith("Not distinguishable from bf16 at this sample: fp8") for line in told)
    assert any(line.startswith("Contiguous pieces of the longest request leave") for line in told)


def test_panels_csv_and_page(document: BenchDocument) -> None:
    panels = bench_panels(document)
    assert [panel.title for panel in panels] == [
        "What smaller caches cost",
        "What smaller caches cost: attention by layer",
        "What smaller caches cost: in time",
        "Where the pool goes, by allocator",
    ]
    assert png_bytes(chart(panels)).startswith(b"\x89PNG")
    assert [len(panel.cases) for panel in panels[:3]] == [2, 2, 2]
    rows = bench_rows(document)
    assert rows[0]["accuracy.kl_mean"] == 1e-3
    assert rows[-1]["fragmentation.allocator"] == "shared"
    assert len(csv_bytes(rows).splitlines()) == 1 + len(document.cases)
    assert "Where the pool goes" in bench_html(document)


def test_size_says_what_was_measured_of_the_formats_that_it_sizes(document: BenchDocument) -> None:
    assert measured_notes(document, ["bf16", "fp8"]) == [
        "fp8: KL 1.0e-03 +- 1e-04; not distinguishable from bf16 at this sample; 2.00x the tokens at 8k; a step 5 % "
        "slower at 256; pays from 610 tokens (measured on tiny, 2,044 tokens of text abababab, beside bf16)"
    ]
    assert measured_notes(document, ["nvfp4"]) == ["--profile: nothing measured of nvfp4, only of fp8, int4"]


def test_two_texts_are_compared_by_their_errors_and_two_pools_by_their_counts(document: BenchDocument) -> None:
    """Half as much KL at a tenth of error each is a difference; a twentieth more is none."""
    half, near = (
        BenchDocument(environment={}, definitions={}, assumptions=[], cases=[accuracy_case("fp8", kl, "loses")])
        for kl in (5e-4, 1.05e-3)
    )
    rows = compare_documents(NamedDocument("a", document), [NamedDocument("half", half), NamedDocument("near", near)])
    verdicts = {row.document: row.verdict for row in rows.rows if row.metric == "kl_mean"}
    assert verdicts["half"].startswith("less by ")
    assert verdicts["near"] == "within the error of these texts"
    same = compare_documents(NamedDocument("a", document), [NamedDocument("b", document)]).rows
    assert {row.verdict for row in same if row.metric in ("largest_batch", "used_ratio", "steps")} == {"same"}


def test_names_of_points_that_lie_close_stand_on_both_sides() -> None:
    points = [(3.5, 0.12), (6.4, 0.10), (11.0, 0.0066), (11.0, 0.0065), (24.0, 0.0007)]
    assert [is_crowded(points, index) for index in range(len(points))] == [True, False, True, False, False]
