"""Workloads in a report: in the order of their gain, with noise told as noise, and a picture of each."""

from __future__ import annotations

import io
import random

import msgspec
import pytest

from kvtool.bench.runs import joined
from kvtool.compare.documents import NamedDocument, compare_documents
from kvtool.report.bench.bench import bench_html, print_bench, write_bench
from kvtool.report.bench.pool_map import pool_map
from kvtool.report.bench.timelines import timeline
from kvtool.report.bench.workloads import (
    NOT_SHOWN,
    gain_table,
    is_shown,
    workload_cases,
    workload_findings,
    workload_tables,
)
from kvtool.report.files import png_bytes
from kvtool.report.terminal import Terminal
from kvtool.results import BenchDocument, Check, Memory, Roofline, Sample, Saved, StepBytes, Workload, WorkloadCase
from tests.report.example import DEFINITIONS, ENVIRONMENT, INPUTS, metrics

MIB = 1 << 20
REQUESTS = 6


def arm(name: str, ttft_ms: float, draw: random.Random) -> list[Sample]:
    return [
        Sample(
            arm=name,
            iteration=iteration,
            ttft_s=(ttft := ttft_ms / 1e3 * draw.uniform(0.95, 1.05)),
            e2e_s=ttft + 0.2,
            itl_s=[0.1, 0.1],
            output_tokens=3,
            prompt_tokens=100,
            cached_tokens=80 if name == "cached" else 0,
            arrival_s=0.1 * place,
            queue_s=0.05,
        )
        for iteration in range(2)
        for place in range(REQUESTS)
    ]


def case(
    scenario: str, policy: str = "lru", *, cached_ms: float, uncached_ms: float, noise_ms: float = 5.0
) -> WorkloadCase:
    draw = random.Random(f"{scenario} {policy}")
    repeat = arm("repeat", cached_ms, draw) if policy == "lru" else []
    saved_ms = uncached_ms - cached_ms
    return WorkloadCase(
        name=f"workload/{scenario}/{policy}",
        inputs=INPUTS | {"scenario": scenario, "eviction": policy, "hit_rate": None, "pool_tokens": 640},
        samples=[*arm("cached", cached_ms, draw), *arm("uncached", uncached_ms, draw), *repeat],
        metrics=metrics(cached_ms / 1e3, 0.1, 100, 3, 1),
        bytes=StepBytes(weights_read=1, kv_read=1, kv_written=1, other=1, prefill_flops=1, decode_flops=1),
        roofline=Roofline(),
        memory=Memory(
            kv_predicted_bytes=9 * MIB,
            kv_allocated_bytes=5 * MIB,
            kv_pool_bytes=20 * MIB,
            kv_waste_bytes=0,
            peak_bytes=None,
        ),
        check=Check(outputs_equal=True),
        workload=Workload(
            scenario=scenario,
            policy=policy,
            admission="always",
            preemption="youngest",
            scale="prompts of up to 100 tokens, as asked for",
            hit_rate_requested=0.8,
            hit_rate_measured=0.8 if policy == "lru" else 0.4,
            hit_tokens_expected=480,
            hits_exact=True,
            hit_tokens=480,
            recomputed_tokens=0,
            prompt_tokens=600,
            evicted_pages=0 if policy == "lru" else 7,
            preemptions=0,
            copied_pages=0,
            tiers=[],
            occupancy=[(0.1, 10), (0.4, 22)],
            held=[(0.1, 10), (0.4, 12)],
            map=[(0, 3, 0), (3, 5, -1), (8, 4, 1), (30, 10, -2)],
            goodput_ratio=0.5,
            saved=Saved(
                ttft_ms=saved_ms,
                ttft_ms_ci_low=saved_ms - 4,
                ttft_ms_ci_high=saved_ms + 4,
                ttft_ratio=saved_ms / uncached_ms,
                repeat_ms=0.0,
                repeat_ms_ci_low=-noise_ms,
                repeat_ms_ci_high=noise_ms,
                flops=3 * 10**9,
                flops_ratio=0.8,
                kv_bytes_not_written=6 * 10**6,
            ),
        ),
    )


def document(*cases: WorkloadCase) -> BenchDocument:
    return BenchDocument(environment=ENVIRONMENT, definitions=DEFINITIONS, assumptions=[], cases=list(cases))


TRANSLATION = case("translation", cached_ms=100, uncached_ms=400)
INDEPENDENT = case("independent", cached_ms=400, uncached_ms=408, noise_ms=20)
AGENT = case("agent", cached_ms=100, uncached_ms=900)
FIFO = case("translation", "fifo", cached_ms=300, uncached_ms=400)


def printed(found: BenchDocument, width: int) -> str:
    console = Terminal(width=width, file=io.StringIO(), record=True, color_system=None)
    print_bench(found, console)
    return console.export_text()


def test_the_largest_gain_comes_first_and_noise_is_no_gain() -> None:
    found = document(INDEPENDENT, TRANSLATION, AGENT)
    rows = gain_table(workload_cases(found)).rows
    assert [row[0] for row in rows] == ["agent", "translation", "independent"]
    assert rows[0][5:] == ("800 (796 to 804)", "89%", "3 G", "5.72 MiB")
    assert rows[2][5:7] == (NOT_SHOWN, "-")
    text = printed(found, 100)
    assert f"independent: this pool of 20 MiB gives 80.0% hits, {NOT_SHOWN} in time to first" in text
    assert "agent: this pool of 20 MiB gives 80.0% hits = 100 ms to the first token, 800 ms (89%) less" in text
    assert "1.00 GB of K and V not computed per 1000 requests" in " ".join(text.split())


@pytest.mark.parametrize(
    ("low", "high", "repeat", "shown"),
    [(3.0, 9.0, 1.0, True), (-1.0, 9.0, 1.0, False), (3.0, 9.0, 7.0, False), (3.0, 9.0, None, True)],
)
def test_a_difference_is_one_beyond_its_interval_and_beyond_noise(
    low: float, high: float, repeat: float | None, shown: bool
) -> None:
    ends = {"repeat_ms_ci_low": repeat and -repeat, "repeat_ms_ci_high": repeat and repeat / 2}
    saved = msgspec.structs.replace(
        TRANSLATION.workload.saved, ttft_ms=6.0, ttft_ms_ci_low=low, ttft_ms_ci_high=high, **ends
    )
    assert is_shown(saved) is shown


@pytest.mark.parametrize("width", [80, 100, 160])
def test_tables_fit_the_terminal(width: int) -> None:
    found = document(INDEPENDENT, TRANSLATION, FIFO, AGENT)
    text = printed(found, width)
    assert max(map(len, text.splitlines())) <= width
    assert "Policies side by side" in text


def test_policies_stand_beside_the_first_that_was_named() -> None:
    (row,) = workload_tables(document(TRANSLATION, FIFO))[2].rows
    assert row[:5] == ("translation", "fifo", "lru", "40.0% / 80.0%", row[4])
    assert 180 < float(row[5].split()[0]) < 220
    same = case("translation", "lfu", cached_ms=100, uncached_ms=400)
    (row,) = workload_tables(document(TRANSLATION, same))[2].rows
    assert row[5] == NOT_SHOWN
    assert len(workload_tables(document(TRANSLATION, AGENT))) == 2
    assert workload_tables(document()) == []


def test_time_that_flops_do_not_explain_is_explained() -> None:
    """A fifth of the FLOPs is left: a ninth of the time is under it, a quarter beyond it by more than 15 %."""
    told = [workload_findings(document(found))[0] for found in (AGENT, TRANSLATION)]
    assert [sentence.endswith("per 1000 requests.") for sentence in told] == [True, False]
    assert "Its FLOPs fall by 80%: the rest is what a step takes however few its tokens" in told[1]


def test_runs_are_joined_and_compared() -> None:
    runs = joined([document(TRANSLATION, FIFO), document(TRANSLATION, FIFO)])
    assert [len(found.samples) for found in runs.cases] == [2 * len(TRANSLATION.samples), 2 * len(FIFO.samples)]
    first = runs.cases[0].workload.saved
    assert first.ttft_ms == pytest.approx(300, rel=0.05)
    assert first.repeat_ms is not None
    assert first.flops == TRANSLATION.workload.saved.flops
    two = document(TRANSLATION, FIFO)
    compared = compare_documents(NamedDocument("a", two), [NamedDocument("b", two)])
    assert {row.verdict for row in compared.rows if row.metric == "ttft_ms"} == {"same"}
    assert len([row for row in compared.rows if row.metric == "ttft_ms"]) == 2


def test_every_workload_has_its_picture_on_the_page_and_in_the_folder(tmp_path) -> None:
    found = document(TRANSLATION, FIFO)
    names = {path.name for path in write_bench(found, tmp_path)}
    assert names == {
        *("bench.json", "bench.csv", "bench.png", "report.html"),
        *("timeline-translation-lru.png", "timeline-translation-fifo.png"),
        *("map-translation-lru.png", "map-translation-fifo.png"),
    }
    assert bench_html(found).count("<img ") == 5


def test_the_map_of_the_pool_has_a_colour_an_owner() -> None:
    figure = pool_map(TRANSLATION)
    (axes,) = figure.axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["request 0", "request 1", "several", "kept for later ones", "free"]
    widths = [round(patch.get_width()) for patch in axes.patches]
    assert widths == [40, 3, 5, 4, 10]  # 640 tokens of pages of 16, then who has them
    wide = msgspec.structs.replace(TRANSLATION.workload, map=[(60, 10, 0)])
    inputs = TRANSLATION.inputs | {"pool_tokens": 16 * 130}
    figure = pool_map(msgspec.structs.replace(TRANSLATION, workload=wide, inputs=inputs))
    patches = [(round(patch.get_x()), round(patch.get_width())) for patch in figure.axes[0].patches]
    assert patches == [(0, 64), (0, 64), (0, 2), (60, 4), (0, 6)]


def test_a_timeline_tells_each_phase_of_each_request_and_the_pool() -> None:
    figure = timeline(TRANSLATION)
    top, bottom = figure.axes
    assert [text.get_text() for text in top.get_legend().get_texts()] == ["queued", "prefill", "decode"]
    assert len(top.patches) == 3 * REQUESTS
    assert [text.get_text() for text in bottom.texts] == ["40 pages"]
    assert int.from_bytes(png_bytes(figure)[16:20], "big") >= 1300
