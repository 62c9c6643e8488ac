"""`kvtool advise`: what to do with the KV cache of a model in a given situation."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from kvtool.cli.answer import answer
from kvtool.cli.flags.advise import Advised, AdviseTraffic
from kvtool.cli.flags.card import NamedCard
from kvtool.cli.flags.group import grouped
from kvtool.cli.flags.output import ExplainOption, ModelsOption, Output
from kvtool.cli.flags.shape import AsOption
from kvtool.cli.values import command_line

EXAMPLES = (
    "Examples:\n\n"
    "  kvtool advise llama-3.1-8b --gpu h100 --workload multi-turn\n\n"
    "  kvtool advise llama-3.1-8b --gpu h100 --input-len 512 --output-len 1"
)


@grouped
def advise(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As for `size`.")],
    *,
    requests: AdviseTraffic,
    asked: Advised,
    card: NamedCard,
    as_family: AsOption = None,
    explain: ExplainOption = False,
    models: ModelsOption = None,
    output: Output,
) -> None:
    """Say whether MODEL needs a cache there, and how to keep it: each answer with the number that decided it."""
    from kvtool.advise.advise import advise as decide
    from kvtool.catalog.resolve import resolve_model
    from kvtool.report.verdicts.advise import print_advise, write_advise

    chosen = resolve_model(model, models_path=models, family=as_family)
    document = decide(asked.situation(model, chosen, requests, card))
    write = partial(write_advise, command=command_line())
    answer(document, output, show=partial(print_advise, explain=explain), write=write)
