"""A bench document out: tables for a terminal, one row a case as CSV, a chart, one page of HTML. Reads results only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvtool.report import html
from kvtool.report.bench.accuracy import accuracy_tables
from kvtool.report.bench.cases import SHARED_INPUTS
from kvtool.report.bench.charts import bench_panels, chart
from kvtool.report.bench.disaggregate import disaggregate_tables
from kvtool.report.bench.endpoint import endpoint_tables
from kvtool.report.bench.findings import findings, headline
from kvtool.report.bench.fragmentation import fragmentation_tables
from kvtool.report.bench.peers import engines_table
from kvtool.report.bench.pool_map import pool_maps
from kvtool.report.bench.ranks import ranks_tables
from kvtool.report.bench.tables import bench_tables
from kvtool.report.bench.timelines import timelines
from kvtool.report.bench.workloads import workload_tables
from kvtool.report.files import png_bytes, write_result
from kvtool.report.inputs import case_title, shared_inputs
from kvtool.report.machine.machine import environment_table
from kvtool.report.peers import peer_columns, with_peers
from kvtool.report.rows import case_rows
from kvtool.report.tables import Table, to_html
from kvtool.results import BenchDocument, BenchPeer
from kvtool.results.warnings import load_warnings, throttle_warnings

if TYPE_CHECKING:
    from rich.console import Console


def print_bench(document: BenchDocument, console: Console) -> None:
    """The answer, what ran, every table, the findings in words, and what was assumed."""
    from rich.text import Text

    disturbed = load_warnings(document.environment, document.cases)
    warnings = [*disturbed, *throttle_warnings(document.cases)]
    for line in disturbed:
        console.print(Text(line, style="bold yellow"))
    if answer := headline(document):
        console.print(Text(answer, style="bold"))
    console.print(Text(describe_run(document), style="dim"))
    console.print()
    for table in tables(document):
        console.print(table)
    for heading, sentences in (("In short", findings(document)), ("Assumed", _but(document.assumptions, disturbed))):
        if sentences:
            console.print(Text(heading, style="bold"))
        for sentence in sentences:
            console.print(Text(f"- {sentence}", style="yellow" if sentence in warnings else ""))
        if sentences:
            console.print()


def _but(lines: list[str], told: list[str]) -> list[str]:
    """Without those that were told before."""
    return [line for line in lines if line not in told]


def write_bench(document: BenchDocument, directory: Path, *, command: str = "") -> list[Path]:
    """bench.json, bench.csv, bench.png and report.html in `directory`, and the timeline of each workload; the paths
    written. The page names the `command` that made it. Raises KvtoolError.
    """
    return write_result(
        directory,
        "bench",
        document,
        rows=bench_rows(document),
        figure=chart(bench_panels(document), title=chart_title(document)),
        html=bench_html(document, command),
        more=timelines(document) | pool_maps(document),
    )


def tables(document: BenchDocument) -> list[Table]:
    """Those of the document's own figures, then the one of its peers."""
    raced = with_peers(document.cases)
    smaller = [*accuracy_tables(document), *fragmentation_tables(document)]
    own = [*endpoint_tables(document), *bench_tables(document), *workload_tables(document), *smaller]
    own += [*ranks_tables(document), *disaggregate_tables(document)]
    return own + ([engines_table(raced)] if raced else [])


def bench_rows(document: BenchDocument) -> list[dict[str, Any]]:
    """One row a case, samples left out."""
    peers = peer_columns(document.cases, lambda name: BenchPeer(name=name, version=None))
    return [row | columns for row, columns in zip(case_rows(document.cases), peers, strict=True)]


def bench_html(document: BenchDocument, command: str = "") -> str:
    """The page for somebody who was not there: results, charts, tables, the machine, and what each word means."""
    images = {f"{panel.title} ({panel.explain})": png_bytes(chart([panel])) for panel in bench_panels(document)}
    images |= {f"{name}: requests and pages over time": png_bytes(drawn) for name, drawn in timelines(document).items()}
    images |= {
        f"{name}: whose the pages of the pool are": png_bytes(drawn) for name, drawn in pool_maps(document).items()
    }
    return html.page(
        title=run_title(document),
        subtitle=f"{describe_run(document)}. {document.environment.get('date_utc', '')}",
        body=[
            html.warnings([*load_warnings(document.environment), *throttle_warnings(document.cases)]),
            html.made_of(command, ("bench.json", "bench.csv", "bench.png")),
            html.key_points(list(filter(None, dict.fromkeys((headline(document), *findings(document)))))),
            html.section("Charts", [html.charts(images)]),
            html.section("Tables", [to_html(table) for table in tables(document)]),
            html.section("Environment", [to_html(environment_table(document.environment))]),
            html.section("Definitions", [html.definitions(document.definitions)]),
            html.section("Assumptions", [html.bullets(document.assumptions)]),
        ],
    )


def run_title(document: BenchDocument) -> str:
    """`kvtool bench: smollm2-135m on Xeon`."""
    return case_title("bench", document.cases, document.environment)


def chart_title(document: BenchDocument) -> str:
    """The title of the run, and under it what makes its figures doubtful."""
    disturbed = load_warnings(document.environment, document.cases)
    return "\n".join([run_title(document), *disturbed])


def describe_run(document: BenchDocument) -> str:
    """The inputs that all cases share, and the kernels that ran, in one line."""
    return ", ".join(filter(None, (shared_inputs(document.cases, SHARED_INPUTS), kernels_line(document))))


def kernels_line(document: BenchDocument) -> str:
    """Which kernels ran on a CPU, and where they are slow ones why no others did."""
    kernels, reason = (document.environment.get(key) for key in ("cpu_kernels", "cpu_kernels_reason"))
    if kernels is None or not all(str(case.inputs.get("device", "")).startswith("cpu") for case in document.cases):
        return ""
    if kernels == "compiled" and any(case.inputs.get("dtype") != "bf16" for case in document.cases):
        return "kernels: torch's own, which are slower (the compiled ones are for --dtype bf16)"
    if kernels == "compiled":
        return "kernels: compiled"
    return f"kernels: torch's own, which are slower ({reason or 'nothing could be compiled'})"
