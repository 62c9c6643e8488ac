"""A run that others disturbed says so first wherever its figures are read; no percentile of a few values."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from msgspec.structs import replace

from kvtool.compare.documents import NamedDocument, compare_documents
from kvtool.report.bench.bench import bench_html, bench_rows, chart_title, kernels_line, print_bench
from kvtool.report.bench.findings import findings
from kvtool.report.cells import CARRIES_P99, tail
from kvtool.report.terminal import Terminal
from kvtool.results import BenchDocument, Load, summarise
from tests.compare.example import ENVIRONMENT, document


@pytest.fixture
def disturbed() -> BenchDocument:
    found = document(environment={**ENVIRONMENT, "other_load_cores": 0.97, "memory_bytes": 25276502016})
    load = Load(other_cores=1.1, disturbed_iterations=2)
    return replace(found, cases=[replace(case, load=load) for case in found.cases])


def printed(found: BenchDocument) -> list[str]:
    out = io.StringIO()
    print_bench(found, Terminal(file=out, width=200))
    return out.getvalue().splitlines()


def test_it_is_said_first_and_everywhere(disturbed: BenchDocument) -> None:
    assert printed(disturbed)[0].startswith("DISTURBED: ")
    assert findings(disturbed)[0].startswith("DISTURBED: ")
    page = bench_html(disturbed)
    assert page.index("DISTURBED: ") < page.index("<h2>")
    assert chart_title(disturbed).splitlines()[1].startswith("DISTURBED: ")
    for row in bench_rows(disturbed):
        assert (row["load.other_cores"], row["load.disturbed_iterations"]) == (1.1, 2)


def test_a_quiet_run_says_nothing(tmp_path: Path) -> None:
    quiet = document()
    assert "DISTURBED" not in "".join((*printed(quiet), bench_html(quiet), chart_title(quiet)))


def test_compare_warns_of_it_and_not_of_a_few_kilobytes(disturbed: BenchDocument) -> None:
    other = document(environment={**ENVIRONMENT, "memory_bytes": 25276514304, "other_load_cores": 0.0})
    warnings = compare_documents(NamedDocument("a", disturbed), [NamedDocument("b", other)]).warnings
    assert warnings[0].startswith("a: DISTURBED: others used up to 1.1 cores")
    assert not any("memory_bytes" in line for line in warnings)
    less = replace(other, environment={**other.environment, "memory_bytes": 16 << 30})
    warnings = compare_documents(NamedDocument("a", disturbed), [NamedDocument("b", less)]).warnings
    assert any("memory_bytes" in line for line in warnings)


def test_a_percentile_needs_values_that_carry_it() -> None:
    few, many = [14.0, 15.0, 22.0], [float(i) for i in range(1, CARRIES_P99 + 1)]
    assert tail(summarise(few), few) == "14.0..22.0"
    assert tail(summarise(many), many).startswith("p99 ")
    assert tail(None, []) == "-"
    text = "\n".join(printed(document()))
    assert "p99" not in text.split("requests, or p99")[0]


def test_the_kernels_that_ran_are_named_and_why_not_faster_ones() -> None:
    def said(dtype: str = "bf16", **environment: str) -> str:
        return kernels_line(document(environment={**ENVIRONMENT, **environment}, dtype=dtype, device="cpu"))

    assert said(cpu_kernels="compiled") == "kernels: compiled"
    slow = said(cpu_kernels="torch", cpu_kernels_reason="there is no gcc")
    assert slow == "kernels: torch's own, which are slower (there is no gcc)"
    assert "for --dtype bf16" in said("fp32", cpu_kernels="compiled")
    assert said() == ""
