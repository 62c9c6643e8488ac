"""`kvtool size`: what the KV cache of a model takes, and whether it fits a card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.cli.answer import answer
from kvtool.cli.flags.cache import Cache, Drafts
from kvtool.cli.flags.card import MeasuredCard
from kvtool.cli.flags.engine import EngineFlags
from kvtool.cli.flags.group import grouped
from kvtool.cli.flags.layout import Layout
from kvtool.cli.flags.output import ExplainOption, ModelsOption, Output
from kvtool.cli.flags.questions import Questions, loaded_as
from kvtool.cli.flags.shape import Shape

if TYPE_CHECKING:
    from rich.console import Console

    from kvtool.catalog.model import Model
    from kvtool.results import SizeDocument
    from kvtool.sizing.options import SizeOptions

EXAMPLES = (
    "Examples:\n\n"
    "  kvtool size llama-3.1-8b --context 8k,128k --batch-size 1,16 --gpu h100\n\n"
    "  kvtool size gpt-oss-120b --engine vllm --kv-cache-memory-bytes 40GiB"
)


@grouped
def size(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A catalogue name, a folder, config.json or .gguf file.")
    ] = None,
    *,
    shape: Shape,
    cache: Cache,
    layout: Layout,
    card: MeasuredCard,
    drafts: Drafts,
    questions: Questions,
    engine: EngineFlags,
    explain: ExplainOption = False,
    models: ModelsOption = None,
    output: Output,
) -> None:
    """Size the KV cache of MODEL: bytes per token, per sequence and per GPU, what fits, and how fast decode can be."""
    from msgspec import structs

    from kvtool.catalog.checkpoint import find_checkpoint
    from kvtool.sizing.size import size as size_rows
    from kvtool.sizing.solve.solve import solve
    from kvtool.sizing.words.measured import measured_notes

    chosen, draft = shape.model(model, models), drafts.request(models)
    options = cache.options(
        card,
        engine,
        parallel=layout.parallel(),
        num_speculative_tokens=draft.tokens if draft else 0,
        draft=draft,
        checkpoint=find_checkpoint(model) if model else None,
        calibration=card.measured(),
        places=questions.places(),
        lengths=questions.parsed_lengths(),
    )
    question = questions.question(ctx, context=cache.context, loads=loaded_as(model, chosen.id))
    if question is None:
        document = size_rows(chosen, options=options)
    else:
        document, options = solve(chosen, options, question)
    if (caches := questions.measured_caches()) is not None:
        notes = measured_notes(caches, [row.inputs.kv_cache_dtype for row in document.rows])
        document = structs.replace(document, assumptions=[*document.assumptions, *notes])
    end(chosen, options, document, explain=explain, output=output)


def end(model: Model, options: SizeOptions, document: SizeDocument, *, explain: bool, output: Output) -> None:
    """Exit 1 where no row fits, nothing is found that would, or the engine would not start."""
    from kvtool.sizing.words.explain import explain as explain_rows

    lines = list(explain_rows(model, options=options)) if explain else []
    refused = all(row.fit.fits is False or row.engine.refusal for row in document.rows)

    def show(document: SizeDocument, console: Console) -> None:
        from kvtool.report.size.planned import print_ledgers
        from kvtool.report.size.size import print_size
        from kvtool.sizing.words.hinge import largest_hinge
        from kvtool.sizing.words.passing import passing
        from kvtool.sizing.words.remedies import remedies

        print_size(
            document,
            console,
            hinge=largest_hinge([model], options, document.rows),
            remedies=remedies(model, options, document.rows),
            passing=passing(model, options, document.rows),
            explain=explain,
        )
        if explain:
            print_ledgers(document, console)
            for line in lines:
                console.print(line, soft_wrap=True, highlight=False)

    answer(
        document,
        output,
        show=show,
        write=lambda document, directory: write(model, options, document, directory),
        notes=lines if output.json else (),
        code=int(bool(refused) if document.solutions is None else not document.solutions),
    )


def write(model: Model, options: SizeOptions, document: SizeDocument, directory: Path) -> None:
    """The files of --out, with the curve over contexts. Raises KvtoolError."""
    from kvtool.report.size.size import write_size
    from kvtool.sizing.size import curve
    from kvtool.sizing.size import size as size_rows

    write_size(document, directory, curve=size_rows(model, options=curve(model, options)))
