"""`kvtool models`: the catalogue, listed and searched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtool.cli.answer import answer
from kvtool.cli.flags.group import grouped
from kvtool.cli.flags.output import ModelsOption, Tabled
from kvtool.system.errors import KvtoolError

if TYPE_CHECKING:
    from rich.console import Console

    from kvtool.catalog.model import Model
    from kvtool.catalog.models_yaml import Catalogue, Entry
    from kvtool.report.tables import Table

EXAMPLES = "Examples:\n\n  kvtool models qwen3 --attention gqa\n\n  kvtool models deepseek-v3 --json"
KINDS = ("mha", "gqa", "mqa", "mla", "sliding", "chunked", "linear", "mamba", "conv", "cross", "indexer", "none")
Rows = list[tuple["Entry", "Model"]]


@grouped
def models(
    query: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORD]...", help="All of which the name, an alias or the architecture holds."),
    ] = None,
    *,
    attention: Annotated[
        str | None, typer.Option(metavar="KIND", help=f"Only models with: {', '.join(KINDS)}.")
    ] = None,
    models_file: ModelsOption = None,
    output: Tabled,
) -> None:
    """List the models that kvtool knows by name, with what a token of each costs."""
    catalogue = load(models_file)
    rows = search(catalogue, " ".join(query or ()), attention)
    document = {"schema": "kvtool.models/1", "models": [describe(*row) for row in rows]}
    answer(document, output, show=lambda document, console: show(rows, console))


def show(rows: Rows, console: Console) -> None:
    """How many there are or what the one costs; a line a model; of a single one its other facts too."""
    console.print(told(rows), style="bold", highlight=False, markup=False)
    console.print(overview(rows))
    if len(rows) == 1:
        console.print(details(*rows[0]))


def told(rows: Rows) -> str:
    """The answer in a line: what a token of a single model costs, else how many there are, cheapest to dearest."""
    costs = sorted((bytes_per_token(model), entry.id) for entry, model in rows)
    (least, _), (most, dearest) = costs[0], costs[-1]
    if len(rows) == 1:
        return f"{dearest}: {most:,} bytes of KV cache a token in bf16, {_size(rows[0][1].params_total)} parameters."
    return f"{len(rows)} models, {least:,} to {most:,} bytes of KV cache a token in bf16."


def load(path: Path | None) -> Catalogue:
    from kvtool.catalog.models_yaml import load_catalogue

    return load_catalogue(path)


def search(catalogue: Catalogue, query: str | None, attention: str | None) -> Rows:
    """The entries that hold every word of `query` and have the attention kind. Raises KvtoolError where none does."""
    if attention is not None and attention.lower() not in KINDS:
        raise KvtoolError(f"--attention {attention!r} is not a kind: write one of {', '.join(KINDS)}")
    words = (query or "").lower().split()
    rows = [(entry, entry.model()) for entry in catalogue.entries() if _matches(entry, words)]
    if words and not rows:
        raise KvtoolError(f"no model matches {query!r}{catalogue.nearest(str(query))}")
    rows = [row for row in rows if attention is None or attention.lower() in _kinds(row[1])]
    if not rows:
        raise KvtoolError(f"no model {f'that matches {query!r} ' if words else ''}has {attention} attention")
    return rows


def _matches(entry: Entry, words: list[str]) -> bool:
    text = " ".join([*entry.names(), (entry.architecture or "").lower()])
    return all(word in text for word in words)


def _kinds(model: Model) -> set[str]:
    indexer = {"indexer"} if any(layer.indexer for layer in model.layers) else set()
    return indexer | set(model.attention.split("+"))


def bytes_per_token(model: Model) -> int:
    """What one more token adds for good: bf16, layers that grow without bound."""
    from kvtool.sizing.formats import parse_cache_format
    from kvtool.sizing.layers import layer_specs
    from kvtool.sizing.usage import count_specs, growth_bytes

    return growth_bytes(count_specs(layer_specs(model, parse_cache_format("bf16"))), indexer=False)


def describe(entry: Entry, model: Model) -> dict[str, Any]:
    """One model for --json: the file's own facts, and what follows from them."""
    import msgspec

    derived = {
        "attention": model.attention,
        "num_layers": model.num_layers,
        "kv_bytes_per_token_bf16": bytes_per_token(model),
    }
    return {**msgspec.to_builtins(entry), **derived}


def overview(rows: Rows) -> Table:
    from kvtool.report.tables import Table

    cells = [
        (
            entry.id.rsplit("/", 1)[-1].lower(),
            model.attention,
            str(model.num_layers),
            str(model.num_heads),
            _size(model.params_total),
            f"{bytes_per_token(model):,}",
        )
        for entry, model in rows
    ]
    return Table(
        title="Models",
        columns=("model", "attention", "layers", "heads", "params", "KV bytes/token"),
        rows=cells,
        labels=2,
        spare=("heads", "layers", "params", "attention"),
        note="KV bytes/token: bf16, layers that grow without bound. Windows and states come on top: see kvtool size.",
    )


def _size(params: int | None) -> str:
    """`1.03T`, `8.03B`, `135M`; `-` where no source counts them."""
    if params is None:
        return "-"
    factor, unit = next(((f, u) for f, u in ((1e12, "T"), (1e9, "B")) if params >= 0.9995 * f), (1e6, "M"))
    return f"{params / factor:.3g}{unit}"


def details(entry: Entry, model: Model) -> Table:
    """One model's facts, for a search that found just it."""
    from kvtool.report.tables import Table

    facts = {
        "id": entry.id,
        "other names": ", ".join(entry.aliases),
        "architecture": entry.architecture,
        "layers": entry.layers,
        "hidden size": f"{model.hidden_size:,}",
        "longest context": model.max_position_embeddings and f"{model.max_position_embeddings:,}",
        "source": entry.source,
        "parameters from": entry.params_source,
        "confidence": entry.confidence,
        "notes": entry.notes,
    }
    rows = [(name, str(value)) for name, value in facts.items() if value]
    return Table(title="Facts", columns=("", ""), rows=rows, labels=2)
