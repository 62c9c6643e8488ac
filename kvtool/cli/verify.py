"""`kvtool verify`: what an engine logged at its start, beside what kvtool predicts for it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from kvtool.cli.answer import answer
from kvtool.cli.flags.card import NamedCard
from kvtool.cli.flags.group import grouped
from kvtool.cli.flags.output import ExplainOption, ModelsOption, Tabled
from kvtool.cli.flags.shape import AsOption
from kvtool.cli.flags.stated import Stated
from kvtool.errors import KvtoolError

EXAMPLES = (
    "Examples:\n\n"
    "  kvtool verify vllm.log llama-3.1-8b\n\n"
    "  kvtool verify vllm.log llama-3.1-8b --gpu a100-sxm-80gb --save measured.json"
)


@grouped
def verify(
    log: Annotated[str, typer.Argument(metavar="LOG", help="A start-up log or /metrics text, - for standard input.")],
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="As for `size`, where the log does not name it.")
    ] = None,
    *,
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
    """Hold LOG against the prediction, term by term; exit 1 where a term that must be exact is off, or it refused."""
    from kvtool.files import write_atomic
    from kvtool.report.verdicts.verify import print_verify
    from kvtool.results import encode
    from kvtool.verify.calibrate import calibration
    from kvtool.verify.lines import read_lines
    from kvtool.verify.read import read_facts
    from kvtool.verify.verify import Asked
    from kvtool.verify.verify import verify as verify_facts

    if as_family is not None and model is None:
        raise KvtoolError(f"--as {as_family} is how to read MODEL's config: name its file or repository after LOG")
    asked = Asked(model=model, gpu=card.found(), flags=stated.given(), models_path=models, family=as_family)
    name = "standard input" if log == "-" else log
    facts = read_facts(read_lines(log), name)
    document = verify_facts(facts, asked, log=name)
    measured = None if save is None else calibration(facts, name)
    try:
        code = int(document.verdict in ("off", "refused"))
        answer(document, output, show=partial(print_verify, explain=explain), code=code)
    finally:
        if save is not None and measured is not None:
            write_atomic(save, encode(measured))
