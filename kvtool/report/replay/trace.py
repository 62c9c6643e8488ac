"""A trace document out: what the trace is, and what was found in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtool.report.tables import Table
from kvtool.results import TraceDocument
from kvtool.units import format_ms

if TYPE_CHECKING:
    from rich.console import Console


def print_trace(document: TraceDocument, console: Console) -> None:
    """The trace in a line, a row a finding, and how each kind is mended."""
    from rich.text import Text

    console.print(Text(describe_trace(document)))
    for line in (missed_words(document), statistics_words(document)):
        if line:
            console.print(Text(line))
    if document.findings:
        console.print()
        console.print(findings_table(document))
    elif not document.statistics:
        console.print(Text("Nothing odd was found."))
    for kind, remedy in {finding.kind: finding.remedy for finding in document.findings if finding.remedy}.items():
        console.print(Text(f"- {kind}: {remedy}"))
    for assumption in document.assumptions:
        console.print(Text(f"- {assumption}", style="dim"))


def describe_trace(document: TraceDocument) -> str:
    """`conversation.jsonl: mooncake, 12,031 requests in 3,540 s, ...`, with the beginning of its hash."""
    trace = document.trace
    blocks = f"{trace.total_blocks:,} blocks of {trace.block_size} tokens, " if trace.total_blocks else ""
    return (
        f"{trace.name}: {trace.format}, {trace.requests:,} requests in {trace.duration_s:,.0f} s, {blocks}"
        f"{trace.input_tokens:,} tokens in, {trace.output_tokens:,} out, sha256 {trace.sha256[:16]}"
    )


def missed_words(document: TraceDocument) -> str:
    """Where the tokens of all prompts went; empty where nobody asked."""
    total = document.trace.input_tokens
    if not document.missed_tokens or not total:
        return ""
    parts = [
        f"{100 * tokens / total:.1f} % {name.replace('_', ' ')}" for name, tokens in document.missed_tokens.items()
    ]
    return f"Of all prompt tokens: {', '.join(parts)}."


def statistics_words(document: TraceDocument) -> str:
    """The means over sessions; empty where there are none."""
    if not document.statistics:
        return ""
    means = dict(document.statistics)
    sessions = means.pop("sessions")
    parts = [f"{value:,.1f} {name.replace('_', ' ')}" for name, value in means.items()]
    return f"{sessions:,.0f} sessions, the means over them: {', '.join(parts)}."


def findings_table(document: TraceDocument) -> Table:
    """Every finding; a trace as a whole has no line. What is lost has a column where it is known."""
    found = document.findings
    with_tokens = any(finding.tokens_lost is not None for finding in found)
    with_ms = any(finding.ms_lost is not None for finding in found)
    return Table(
        title=f"{len(found):,} findings",
        columns=(
            "line",
            "kind",
            "what",
            *(("tokens\nlost",) if with_tokens else ()),
            *(("ms\nlost",) if with_ms else ()),
        ),
        rows=[
            (
                f"{f.line:,}" if f.line is not None else "-",
                f.kind,
                f.detail,
                *((f"{f.tokens_lost or 0:,}",) if with_tokens else ()),
                *((format_ms(f.ms_lost),) if with_ms else ()),
            )
            for f in found
        ],
        labels=3,
    )
