"""`kvtool compare`: models by what their caches take, or bench documents by what they measured."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.cli.answer import answer
from kvtool.cli.flags.cache import Cache
from kvtool.cli.flags.card import Card
from kvtool.cli.flags.engine import EngineMemory
from kvtool.cli.flags.group import grouped
from kvtool.cli.flags.layout import Layouts
from kvtool.cli.flags.output import ExplainOption, ModelsOption, Output
from kvtool.cli.flags.shape import AsOption
from kvtool.cli.values import command_line, given
from kvtool.system.errors import KvtoolError

if TYPE_CHECKING:
    from rich.console import Console

    from kvtool.catalog.model import Model
    from kvtool.results import MatrixDocument
    from kvtool.sizing.options import SizeOptions

EXAMPLES = (
    "Examples:\n\n"
    "  kvtool compare llama-3.1-8b qwen3-8b --tp 1,8 --kv-cache-dtype bf16,fp8\n\n"
    "  kvtool compare gemma-3-27b-it --engine vllm==0.25,vllm==0.26 --gpu h100"
)
DEFAULT_CONTEXTS = "4k,32k"
FOR_DOCUMENTS = {"names", "fail_on_regression", "explain", "json", "out"}  # every other option is about models


@grouped
def compare(
    ctx: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="A B...",
            help="Two or more models, one for several --engine, or bench documents: base/bench.json new/bench.json.",
        ),
    ],
    *,
    fail_on_regression: Annotated[
        str | None, typer.Option(metavar="PERCENT", help="Documents: exit 1 if a metric is worse by more, as 5%.")
    ] = None,
    cache: Cache,
    layouts: Layouts,
    card: Card,
    engine: EngineMemory,
    as_family: AsOption = None,
    explain: ExplainOption = False,
    models: ModelsOption = None,
    output: Output,
) -> None:
    """Compare models by the memory of their caches, or benchmarks by their metrics; the first is the baseline."""
    from kvtool.catalog.resolve import resolve_models
    from kvtool.compare.models import compare_models
    from kvtool.compare.sources import are_documents
    from kvtool.report.compare.compare import print_matrix, write_matrix
    from kvtool.sizing.words.hinge import largest_hinge

    releases = engine.releases()
    if len(releases) < 2 and are_documents(names):
        refuse_others(given(ctx))
        limit = None if fail_on_regression is None else parse_percent(fail_on_regression)
        compare_documents(names, limit, explain=explain, output=output)
        return
    if fail_on_regression is not None:
        raise KvtoolError("--fail-on-regression is for bench documents: models have no measurements")
    options = cache.options(card, engine, default_context=DEFAULT_CONTEXTS)
    parallels = layouts.parallels()
    if len(releases) > 1 and len(names) > 1:
        raise KvtoolError(f"releases compare for one model, not for {len(names)}: name one, or one release")
    chosen = resolve_models(names, models_path=models, family=as_family)
    if len(releases) > 1:
        compare_releases(chosen[0], replace(options, parallel=parallels[0]), releases, explain=explain, output=output)
        return
    document = compare_models(chosen, options, parallels)

    def show(document: MatrixDocument, console: Console) -> None:
        print_matrix(document, console, hinge=largest_hinge(chosen, options, document.rows), explain=explain)

    answer(document, output, show=show, write=partial(write_matrix, command=command_line()))


def compare_releases(
    model: Model,
    options: SizeOptions,
    releases: list[tuple[str, str | None]],
    *,
    explain: bool,
    output: Output,
) -> None:
    """Compare what releases of one engine make of one model. Raises KvtoolError for releases of several."""
    from kvtool.compare import releases as by_release
    from kvtool.report.compare.releases import print_releases, write_releases

    document = by_release.compare_releases(model, options, releases)
    show = partial(print_releases, explain=explain)
    answer(document, output, show=show, write=write_releases)


def refuse_others(typed: dict[str, str]) -> None:
    """Raises KvtoolError for an option that says nothing of documents."""
    for name, option in typed.items():
        if name not in FOR_DOCUMENTS:
            raise KvtoolError(f"{option} is for models: documents say what they ran with")


def parse_percent(text: str) -> float:
    """`5%` -> 0.05. Raises KvtoolError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    if match is None:
        raise KvtoolError(f"--fail-on-regression {text!r} is not a percentage: write 5%")
    return float(match[1]) / 100


def compare_documents(names: list[str], limit: float | None, *, explain: bool, output: Output) -> None:
    """Compare bench documents; exit 1 for a regression beyond `limit`."""
    from kvtool.compare import documents
    from kvtool.compare.sources import read_bench
    from kvtool.report.compare.compare import print_compare, write_compare

    baseline, *others = [read_bench(name) for name in names]
    document = documents.compare_documents(baseline, others)
    failing = [] if limit is None else documents.regressions(document.rows, limit)
    notes = [f"regression: {row.document}: {row.case} {row.metric} {row.verdict}" for row in failing]
    answer(
        document,
        output,
        show=partial(print_compare, explain=explain),
        write=partial(write_compare, command=command_line()),
        notes=notes,
        code=int(bool(failing)),
    )
