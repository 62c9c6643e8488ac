"""What a bench document becomes: tables in 80 columns, a CSV row a case, panels, a page, sentences that are true."""

from __future__ import annotations

import csv
import io
import json

import msgspec
import pytest

from kvtool.report.bench.bench import bench_html, bench_rows, describe_run, print_bench, run_title, write_bench
from kvtool.report.bench.cases import cases_of
from kvtool.report.bench.charts import bench_panels, chart, grouped, saving_in_words
from kvtool.report.bench.findings import findings, headline
from kvtool.report.bench.tables import (
    arm_memory_table,
    arm_time_table,
    bench_tables,
    latency_table,
    prefix_savings_table,
    prefix_table,
    roofline_table,
)
from kvtool.report.files import csv_bytes, png_bytes
from kvtool.report.terminal import Terminal
from kvtool.results import BenchDocument, encode, read_document
from tests.report.example import PATH, example_document


@pytest.fixture(scope="module")
def document():
    return read_document(PATH, BenchDocument)


def only(document, part):
    return msgspec.structs.replace(document, cases=cases_of(document, part))


def with_case(document, part, **changes):
    """The document with one case of `part`, its nested parts changed: `roofline={"mbu": None}`."""
    case = cases_of(document, part)[-1]
    for name, fields in changes.items():
        value = msgspec.structs.replace(getattr(case, name), **fields) if isinstance(fields, dict) else fields
        case = msgspec.structs.replace(case, **{name: value})
    return msgspec.structs.replace(document, cases=[case])


def printed(document, width):
    console = Terminal(width=width, file=io.StringIO(), record=True, color_system=None)
    print_bench(document, console)
    return console.export_text()


def test_the_example_on_disk_is_the_one_the_builder_makes():
    assert json.loads(PATH.read_bytes()) == json.loads(encode(example_document()))


@pytest.mark.parametrize("width", [80, 100, 160])
def test_tables_fit_and_no_cell_is_broken(document, width):
    text = printed(document, width)
    assert max(map(len, text.splitlines())) <= width
    assert "compute-bound" in text
    assert "455 (447 to 461)" in text
    assert all(cell in text for table in bench_tables(document) for row in table.rows for cell in row)


def test_the_latency_table_has_a_row_a_case_with_its_medians(document):
    table = latency_table(cases_of(document, "latency"))
    assert table.columns[:2] == ("input", "batch")
    assert len(table.rows) == 12
    assert table.rows[-1] == ("2k", "8", "9,131", "8,998..9,487", "34.0", "34.2..34.6", "1,794", "235", "5")


def test_an_input_that_varies_becomes_a_column_and_one_that_does_not_is_told_once(document):
    first, second = cases_of(document, "latency")[:2]
    other = msgspec.structs.replace(second, inputs={**second.inputs, "kv_cache_dtype": "fp8"})
    mixed = msgspec.structs.replace(document, cases=[first, other])
    assert latency_table(mixed.cases).columns[0] == "kv\ncache\ndtype"
    assert [row[0] for row in latency_table(mixed.cases).rows] == ["bf16", "fp8"]
    assert "kv cache dtype" not in describe_run(mixed)
    assert "kv cache dtype bf16" in describe_run(document)


def test_a_null_mbu_is_a_dash_with_its_reason(document):
    reason = "the working set is under twice the last-level cache"
    table = roofline_table(with_case(document, "latency", roofline={"mbu": None, "reason": reason}).cases)
    assert table.rows[0][4] == "-"
    assert f"Where a figure is -: {reason}." in table.note


def test_one_output_token_has_no_tpot_and_no_panel_of_it(document):
    single = with_case(document, "latency", metrics={"tpot_ms": None, "decode_tokens_per_s": None})
    row = latency_table(single.cases).rows[0]
    assert row[4:] == ("-", "-", "1,794", "-", "5")
    assert bench_panels(single) == []


def test_prefix_hits_show_asked_found_both_arms_and_the_interval(document):
    table = prefix_table(cases_of(document, "prefix"))
    work = prefix_savings_table(cases_of(document, "prefix"))
    assert work.rows[-1][3:] == ("90%", "89.1%", "281 G", "20.04 MiB", "yes")
    assert table.rows[-1][3] == "89.1%"
    assert table.rows[-1][-2:] == ("455 (447 to 461)", "89%")
    assert table.rows[0][-2] == "0.400 (-7.10 to 6.50)"


def test_the_arms_stand_side_by_side_at_every_length(document):
    times = arm_time_table(cases_of(document, "no-cache"))
    assert times.columns == ("tokens", "no cache", "contiguous, grown", "preallocated", "paged", "no cache /\npaged")
    assert [row[0] for row in times.rows] == ["64", "128", "256", "512", "1k"]
    assert times.rows[-1] == ("1k", "523", "23.2", "12.8", "13.1", "39.9x")
    memory = arm_memory_table(cases_of(document, "no-cache"))
    assert memory.rows[0] == ("64", "0 B", "1.41 MiB", "22.50 MiB (94%)", "1.41 MiB")


def test_a_missing_arm_is_a_dash(document):
    cases = [case for case in cases_of(document, "no-cache") if case.name != "no-cache/paged/1024"]
    assert arm_time_table(cases).rows[-1][-2:] == ("-", "-")


def test_a_device_whose_speed_moved_is_given_from_end_to_end(document):
    slower = with_case(document, "latency", roofline={"read_gbps_measured": 12.61})
    moved = msgspec.structs.replace(document, cases=[*document.cases, *slower.cases])
    assert any("reads 12.6 to 25.3 GB/s, copies 17.5 GB/s and" in sentence for sentence in findings(moved))


def test_findings_say_what_the_figures_say(document):
    text = "\n".join(findings(document))
    assert "compared inside this run and are the same in all 23 cases" in text
    assert "reads 25.3 GB/s, copies 17.5 GB/s and multiplies at 1.40 TFLOP/s" in text
    assert "Decode is memory-bound in 8 of 12 cases and compute-bound in 4 of 12 cases" in text
    assert "72% to 75% of the measured bandwidth" in text
    assert "A prefix hit of 89% saves 455 ms to the first token (89%; 95% interval 447 to 461 ms)" in text
    assert "At 1k tokens, a token without a cache takes 39.9 times as long as with pages" in text
    assert "equal in all 12 cases; page rounding leaves 0.3% to 4.0% of it unused" in text


def test_the_first_line_is_the_answer(document):
    # The medians of tests/data/bench_example.json, and its shares of the bandwidth.
    reached = "decode reaches 72% to 75% of the bandwidth measured in this run."
    assert headline(document) == f"TPOT 14.9 to 34.0 ms and TTFT 61.4 to 9,131 ms; {reached}"
    assert printed(document, 200).splitlines()[0] == headline(document)
    assert headline(only(document, "prefix")).startswith("A prefix hit of 89% saves")
    assert headline(only(document, "no-cache")).startswith("At 1k tokens, a token without a cache takes 39.9 times")
    assert headline(msgspec.structs.replace(document, cases=[])) == ""


def test_outputs_that_differ_come_first_and_loud(document):
    wrong = with_case(document, "prefix", check={"outputs_equal": False})
    assert headline(wrong) == findings(wrong)[0]
    assert findings(wrong)[0].startswith("WRONG: the outputs of prefix/1024@0.9 differ")


def test_an_interval_that_spans_zero_is_no_saving(document):
    open_case = with_case(document, "prefix", prefix={"ttft_saved_ms_ci_low": -3.0, "ttft_saved_ms_ci_high": 900.0})
    assert any("no time to first token that this run can show" in sentence for sentence in findings(open_case))
    assert saving_in_words(open_case.cases[0]) == "no saving shown"


def test_a_hit_that_costs_time_says_so(document):
    changes = {
        "ttft_saved_ms": -5.0,
        "ttft_saved_ratio": -0.01,
        "ttft_saved_ms_ci_low": -6.0,
        "ttft_saved_ms_ci_high": -4.0,
    }
    slower = with_case(document, "prefix", prefix=changes)
    assert any("COSTS 5.00 ms to the first token (1%; 95% interval 4.00 to 6.00 ms)" in s for s in findings(slower))
    assert saving_in_words(slower.cases[0]) == "5.00 ms lost"


def test_predicted_that_is_not_allocated_is_counted(document):
    off = with_case(document, "latency", memory={"kv_predicted_bytes": 1})
    assert any("equal in 0 of 1 cases" in sentence for sentence in findings(off))


def test_csv_has_a_row_a_case_and_the_paths_of_the_document(document):
    rows = list(csv.DictReader(io.StringIO(csv_bytes(bench_rows(document)).decode())))
    assert [row["name"] for row in rows] == [case.name for case in document.cases]
    assert rows[0]["inputs.input_len"] == "128"
    assert float(rows[0]["metrics.tpot_ms.p50"]) == document.cases[0].metrics.tpot_ms.p50
    assert rows[0]["prefix.measured_hit_rate"] == ""
    assert rows[14]["prefix.requested_hit_rate"] == "0.9"
    assert not {"samples", "prefix", "inputs"} & rows[0].keys()
    groups = [column.split(".")[0] for column in rows[0]]
    assert groups == sorted(groups, key=groups.index)


@pytest.mark.parametrize(("part", "panels"), [("latency", 2), ("prefix", 1), ("no-cache", 1)])
def test_each_part_alone_has_its_panels_tables_and_page(document, part, panels):
    alone = only(document, part)
    assert len(bench_panels(alone)) == panels
    assert printed(alone, 80)
    assert bench_html(alone).count("<img ") == panels


def test_a_prefix_that_follows_from_the_hit_rate_is_no_line_of_its_own(document):
    cases = cases_of(document, "prefix")
    follows = [
        msgspec.structs.replace(case, inputs={**case.inputs, "prefix_len": round(1024 * case.inputs["hit_rate"])})
        for case in cases
    ]
    ((_, group),) = grouped(follows, "hit_rate")
    assert [case.inputs["hit_rate"] for case in group] == sorted(case.inputs["hit_rate"] for case in cases)
    longer = [msgspec.structs.replace(case, inputs={**case.inputs, "input_len": 2048}) for case in follows]
    assert [name for name, _ in grouped([*follows, *longer], "hit_rate")] == ["input 1k", "input 2k"]


def test_every_line_of_every_panel_is_labelled_in_words(document):
    figure = chart(bench_panels(document), title="all")
    texts = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert {"batch 1, MBU 73%", "batch 8, MBU 75%", "no cache", "contiguous, grown", "preallocated", "paged"} <= texts
    assert {"455 ms saved", "no saving shown", "0.3%"} <= texts
    assert len(figure.axes) == 4


def test_the_chart_is_wide_enough_to_read(document):
    png = png_bytes(chart(bench_panels(document)))
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(png[16:20], "big") >= 1600


def test_a_document_without_cases_still_prints_and_draws(document, tmp_path):
    empty = msgspec.structs.replace(document, cases=[])
    assert bench_tables(empty) == findings(empty) == []
    assert run_title(empty) == "kvtool bench: no case on Example CPU"
    assert len(write_bench(empty, tmp_path)) == 4


def test_all_files_are_written(document, tmp_path):
    paths = write_bench(document, tmp_path / "new")
    assert sorted(path.name for path in paths) == ["bench.csv", "bench.json", "bench.png", "report.html"]
    assert read_document(tmp_path / "new/bench.json", BenchDocument) == document


def test_what_came_before_the_first_sample_is_shown_where_something_did(document):
    assert "Before the first sample" not in printed(document, 80)
    compiled = with_case(document, "latency", cold_start={"jit_s": 4.256, "capture_s": 0.3, "graphs": 1})
    assert "Before the first sample" in printed(compiled, 80)
    assert "4.26" in printed(compiled, 80)
    uncaptured = with_case(document, "latency", cold_start={"jit_s": 4.256})
    assert bench_tables(uncaptured)[3].rows[0][-3:] == ("4.26", "-", "-")
