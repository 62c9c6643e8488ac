"""A trace document out: what the trace is, and what was found in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtool.report.tables import Table
from kvtool.results import TraceDocument

if TYPE_CHECKING:
    from rich.console import Console


def print_trace(document: TraceDocument, console: Console) -> None:
    """The trace in a line, a row a finding, and how each kind is mended."""
    from rich.text import Text

    console.print(Text(describe_trace(document)))
    if document.findings:
        console.print()
        console.print(findings_table(document))
    else:
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


def findings_table(document: TraceDocument) -> Table:
    """Every finding; a trace as a whole has no line."""
    return Table(
        title=f"{len(document.findings):,} findings",
        columns=("line", "kind", "what"),
        rows=[(f"{f.line:,}" if f.line is not None else "-", f.kind, f.detail) for f in document.findings],
        labels=3,
    )
