"""`kvtool trace`: request traces looked at without a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvtool.cli.options import JsonOption

EXAMPLES = (
    "Examples:\n\n"
    "  kvtool trace check conversation.jsonl\n\n"
    "  kvtool trace check conversation.jsonl --format mooncake --json"
)
HELP = "Check request traces: Mooncake, Qwen-Bailian, agent sessions, Azure, KV events of vLLM and SGLang."

app = typer.Typer(no_args_is_help=True, help=HELP)

TraceArgument = Annotated[
    Path, typer.Argument(metavar="TRACE", help="A trace, plain or gzip, or a folder of sessions.")
]
FormatOption = Annotated[
    str | None,
    typer.Option("--format", help="mooncake, bailian, sessions, azure or kv-events (default: what it looks like)."),
]
TraceBlockSizeOption = Annotated[
    int | None, typer.Option("--block-size", help="Tokens a block (default: the format's own, or the trace's).")
]


@app.command(epilog=EXAMPLES)
def check(
    trace: TraceArgument,
    form: FormatOption = None,
    block_size: TraceBlockSizeOption = None,
    json: JsonOption = False,
) -> None:
    """List what is odd about TRACE: broken chains, times that fall, wrong block counts; exit 1 where anything is."""
    from kvtool.report.terminal import Terminal
    from kvtool.report.trace import print_trace
    from kvtool.results import encode
    from kvtool.workloads.traces import open_trace
    from kvtool.workloads.traces.check import check_trace

    document = check_trace(open_trace(trace, form=form, block_size=block_size))
    if json:
        typer.echo(encode(document), nl=False)
    else:
        print_trace(document, Terminal())
    if document.findings:
        raise typer.Exit(1)
