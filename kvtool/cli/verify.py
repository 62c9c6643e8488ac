"""`kvtool verify`: what an engine logged at its start, beside what kvtool predicts for it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.cli.answer import answer
from kvtool.cli.flags.card import NamedCard
from kvtool.cli.flags.engine import Stated
from kvtool.cli.flags.group import grouped
from kvtool.cli.flags.output import ExplainOption, ModelsOption, Tabled
from kvtool.cli.flags.server import Running
from kvtool.cli.flags.shape import AsOption
from kvtool.cli.values import given
from kvtool.system.errors import KvtoolError

if TYPE_CHECKING:
    from kvtool.verify.facts import LogFacts

EXAMPLES = (
    "Examples:\n\n"
    "  kvtool verify vllm.log llama-3.1-8b\n\n"
    "  kvtool verify vllm.log llama-3.1-8b --gpu a100-sxm-80gb --save measured.json"
)


@grouped
def verify(
    ctx: typer.Context,
    log: Annotated[
        str | None,
        typer.Argument(metavar="LOG", help="A start-up log or /metrics text, - for standard input; none with --url."),
    ] = None,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="As for `size`, where the log does not name it.")
    ] = None,
    *,
    running: Running,
    card: NamedCard,
    stated: Stated,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what was measured, for `size --calibration`.")
    ] = None,
    as_family: AsOption = None,
    explain: ExplainOption = False,
    models: ModelsOption = None,
    output: Tabled,
) -> None:
    """Hold LOG, or the server at --url, against the prediction, term by term; exit 1 where a term that must be exact is
    off, or it refused."""
    from kvtool.report.verdicts.verify import print_verify
    from kvtool.results import encode
    from kvtool.system.files import write_atomic
    from kvtool.verify.calibrate import calibration
    from kvtool.verify.verify import Asked
    from kvtool.verify.verify import verify as verify_facts

    running.refuse_without_url(given(ctx))
    facts, name, model = _told(log, model, running)
    if as_family is not None and model is None:
        raise KvtoolError(f"--as {as_family} is how to read MODEL's config: name its file or repository after LOG")
    asked = Asked(model=model, gpu=card.found(), flags=stated.given(), models_path=models, family=as_family)
    document = verify_facts(facts, asked, log=name)
    measured = None if save is None else calibration(facts, name)
    try:
        code = int(document.verdict in ("off", "refused"))
        answer(document, output, show=partial(print_verify, explain=explain), code=code)
    finally:
        if save is not None and measured is not None:
            write_atomic(save, encode(measured))


def _told(log: str | None, model: str | None, running: Running) -> tuple[LogFacts, str, str | None]:
    """The facts, where they are from, and MODEL, which stands first where a --url is named. Raises KvtoolError."""
    from kvtool.verify.lines import read_lines
    from kvtool.verify.read import read_facts

    if running.url is not None:
        if model is not None:
            raise KvtoolError(f"{log} and --url {running.url} are two starts: name a LOG or a --url")
        return running.facts(), running.url, log
    if log is None:
        raise KvtoolError("name the LOG of a start, - for standard input, or the --url of a server that runs")
    name = "standard input" if log == "-" else log
    return read_facts(read_lines(log), name), name, model
