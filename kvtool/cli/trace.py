"""`kvtool trace`: request traces looked at without a cache."""

from __future__ import annotations

import typer

from kvtool.cli.answer import answer
from kvtool.cli.flags.group import grouped
from kvtool.cli.flags.output import Tabled
from kvtool.cli.flags.replay import TraceArgument, TraceForm
from kvtool.cli.help import Command

EXAMPLES = (
    "Examples:\n\n"
    "  kvtool trace check conversation.jsonl\n\n"
    "  kvtool trace check conversation.jsonl --trace-format mooncake --json"
)
HELP = "Check request traces: Mooncake, Qwen-Bailian, agent sessions, Azure, KV events of vLLM and SGLang."

app = typer.Typer(no_args_is_help=True, help=HELP)


@app.command(cls=Command, epilog=EXAMPLES)
@grouped
def check(trace: TraceArgument, *, form: TraceForm, output: Tabled) -> None:
    """List what is odd about TRACE: broken chains, times that fall, wrong block counts; exit 1 where anything is."""
    from kvtool.report.replay.trace import print_trace
    from kvtool.workloads.traces.check import check_trace

    document = check_trace(form.opened(trace))
    answer(document, output, show=print_trace, code=1 if document.findings else 0)
