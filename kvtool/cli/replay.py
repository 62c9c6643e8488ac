"""`kvtool replay`: what a prefix cache of any capacity and policy would have hit."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from kvtool.cli.answer import answer
from kvtool.cli.flags.card import NamedCard
from kvtool.cli.flags.group import grouped
from kvtool.cli.flags.output import ModelsOption, Output
from kvtool.cli.flags.replay import Below, Nodes, Replayed, TraceForm, TracesArgument, trace_paths
from kvtool.cli.flags.shape import AsOption, check_named
from kvtool.cli.progress import progress_bar
from kvtool.cli.values import command_line

EXAMPLES = (
    "Examples:\n\n"
    "  kvtool replay conversation.jsonl --policy lru,optimal --capacity 1000\n\n"
    "  kvtool replay conversation.jsonl llama-3.1-8b --gpu h100 --out report"
)


@grouped
def replay(
    trace: TracesArgument,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="As for `size`: blocks get bytes, capacities may be bytes.")
    ] = None,
    *,
    replayed: Replayed,
    below: Below,
    nodes: Nodes,
    form: TraceForm,
    card: NamedCard,
    as_family: AsOption = None,
    models: ModelsOption = None,
    output: Output,
) -> None:
    """Replay TRACE, or several of them, through a prefix cache: hits of each policy at each capacity, beside the most
    that any could hit.
    """
    from kvtool.replay.replay import replay_all
    from kvtool.report.files import check_writable
    from kvtool.report.replay.replay import print_replay, write_replay
    from kvtool.report.replay.sweep import print_sweep, write_sweep
    from kvtool.results import ReplaySweep

    if output.out is not None:
        check_writable(output.out)
    check_named(as_family, model)
    chosen = None
    if model is not None:
        from kvtool.catalog.resolve import resolve_model

        chosen = resolve_model(model, models_path=models, family=as_family)
    traces = [form.opened(path) for path in trace_paths(trace)]
    with progress_bar() as progress:
        documents = replay_all(
            traces, replayed.options(below, nodes), model=chosen, gpu=card.found(), progress=progress
        )
    warned = [f"kvtool: {line}" for one in documents for line in one.warnings] if output.json else []
    if len(documents) == 1:
        write = partial(write_replay, command=command_line())
        answer(documents[0], output, show=print_replay, write=write, notes=warned)
        return
    write_all = partial(write_sweep, command=command_line())
    answer(ReplaySweep(replays=documents), output, show=print_sweep, write=write_all, notes=warned)
