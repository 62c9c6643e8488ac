"""`kvtool trace`: request traces checked, made, imported and explained, without a cache or a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtool.cli.answer import answer
from kvtool.cli.flags.card import NamedCard
from kvtool.cli.flags.group import grouped
from kvtool.cli.flags.output import ModelsOption, Tabled
from kvtool.cli.flags.replay import TraceArgument, TraceForm
from kvtool.cli.flags.trace import Made, Tokenized
from kvtool.cli.help import Command
from kvtool.system.errors import KvtoolError

if TYPE_CHECKING:
    from kvtool.catalog.model import Model
    from kvtool.replay.saved import PrefillFloor
    from kvtool.results import TraceDocument
    from kvtool.workloads.logs.entries import LogEntry
    from kvtool.workloads.traces import TraceRequest

EXAMPLES = (
    "Examples:\n\n"
    "  kvtool trace check conversation.jsonl\n\n"
    "  kvtool trace check conversation.jsonl --trace-format mooncake --json"
)
MAKE_EXAMPLES = (
    "Examples:\n\n"
    "  kvtool trace make agents agents.jsonl --num-sessions 10 --max-len 32k\n\n"
    "  kvtool trace make shared-prefix questions.jsonl.gz --prefixes 20 --zipf 1.2"
)
IMPORT_EXAMPLES = (
    "Examples:\n\n"
    "  kvtool trace import chats.jsonl trace.jsonl --tokenizer llama-3.1-8b/\n\n"
    "  kvtool trace import token-ids.jsonl trace.jsonl --block-size 16"
)
MISSES_EXAMPLES = (
    "Examples:\n\n"
    "  kvtool trace misses chats.jsonl --tokenizer llama-3.1-8b/\n\n"
    "  kvtool trace misses conversation.jsonl --capacity 10000 --model llama-3.1-8b --gpu h100"
)
HELP = "Check, make, import and explain request traces, and say of logs with text why their prompts miss."
LOG_BLOCK_SIZE = 16  # vLLM's, for logs that have no blocks

app = typer.Typer(name="trace", no_args_is_help=True, add_completion=False, help=HELP, epilog=EXAMPLES)


@app.command(cls=Command, epilog=EXAMPLES)
@grouped
def check(trace: TraceArgument, *, form: TraceForm, output: Tabled) -> None:
    """List what is odd about TRACE: broken chains, times that fall, wrong block counts; exit 1 where anything is."""
    from kvtool.report.replay.trace import print_trace
    from kvtool.workloads.traces.check import check_trace

    document = check_trace(form.opened(trace))
    answer(document, output, show=print_trace, code=1 if document.findings else 0)


@app.command(cls=Command, epilog=MAKE_EXAMPLES)
@grouped
def make(
    kind: Annotated[str, typer.Argument(help="agents, multi-turn, shared-prefix, zipf or ranking.")],
    file: Annotated[Path, typer.Argument(help="Where the trace goes, as Mooncake's JSONL; packed with .gz.")],
    *,
    made: Made,
    output: Tabled,
) -> None:
    """Make a trace of KIND and write it to FILE: who shares which prefix, how long, and when."""
    from kvtool.report.replay.trace import print_trace
    from kvtool.workloads.making.make import make_trace
    from kvtool.workloads.making.options import MEANING

    assumed = "times leave out how long answers take"
    document = _written(file, make_trace(made.options(kind)), [f"{kind}: {MEANING[kind]}", assumed])
    answer(document, output, show=print_trace)


@app.command(name="import", cls=Command, epilog=IMPORT_EXAMPLES)
@grouped
def import_(
    log: Annotated[Path, typer.Argument(help="JSONL: prompts, token ids or chats, plain or gzip.")],
    file: Annotated[Path, typer.Argument(help="Where the trace goes, as Mooncake's JSONL; packed with .gz.")],
    *,
    tokenized: Tokenized,
    block_size: Annotated[int, typer.Option(help="Tokens a block.")] = LOG_BLOCK_SIZE,
    output: Tabled,
) -> None:
    """Turn LOG, requests with their text or token ids, into a trace of block hashes that says nothing of the text."""
    from kvtool.report.replay.trace import print_trace
    from kvtool.workloads.logs.blocks import trace_of

    if block_size < 1:
        raise KvtoolError(f"--block-size {block_size} must be 1 token or more")
    entries = _log(log)
    reading = tokenized.reading(chats=any(entry.messages is not None for entry in entries))
    layout = None if tokenized.tokenizer is None else reading.layout
    requests = list(trace_of(entries, block_size=block_size, encode=reading.encode, layout=layout))
    answer(_written(file, requests, []), output, show=print_trace)


@app.command(cls=Command, epilog=MISSES_EXAMPLES)
@grouped
def misses(
    files: Annotated[list[Path], typer.Argument(help="A trace, a log with text, or two files with a prompt each.")],
    *,
    form: TraceForm,
    tokenized: Tokenized,
    capacity: Annotated[
        str, typer.Option(metavar="BLOCKS", help="Of the cache (a trace); none for no limit.")
    ] = "none",
    match_unit: Annotated[
        int | None,
        typer.Option(metavar="TOKENS", help="A hit is a multiple of so many (a log; default: --model's plan)."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Milliseconds, with --gpu; the match unit (a log).")
    ] = None,
    card: NamedCard,
    models: ModelsOption = None,
    output: Tabled,
) -> None:
    """Say why prompts miss: what was evicted, and what in a text keeps it from an earlier one."""
    from kvtool.catalog.resolve import resolve_model
    from kvtool.replay.misses.misses import misses_of_log, misses_of_trace
    from kvtool.report.replay.trace import print_trace
    from kvtool.workloads.logs.entries import is_log, of_prompts
    from kvtool.workloads.traces.source import TraceSource

    chosen = None if model is None else resolve_model(model, models_path=models)
    floor = _floor(chosen, card)
    if len(files) == 1 and not (form.trace_format is None and is_log(TraceSource(files[0]).head())):
        if chosen is not None and floor is None:
            raise KvtoolError(f"--model {model} gives milliseconds of a trace, with a card: --gpu h100")
        document = misses_of_trace(form.opened(files[0]), capacity=_blocks(capacity), floor=floor)
    else:
        if capacity != "none":
            raise KvtoolError("--capacity is of a trace with block ids: kvtool trace import makes one of a log")
        entries = _log(files[0]) if len(files) == 1 else of_prompts(files)
        document = misses_of_log(
            ", ".join(file.name for file in files),
            _sha256(files),
            entries,
            tokenized.reading(chats=any(entry.messages is not None for entry in entries)),
            block_size=LOG_BLOCK_SIZE if form.block_size is None else form.block_size,
            match_unit=match_unit,
            model=chosen,
            floor=floor,
        )
    answer(document, output, show=print_trace)


def _log(path: Path) -> list[LogEntry]:
    from kvtool.workloads.logs.entries import read_log

    entries = list(read_log(path))
    if not entries:
        raise KvtoolError(f"{path.name} has no requests")
    return entries


def _sha256(paths: Iterable[Path]) -> str:
    """Of all the files' uncompressed bytes, one after the other."""
    import hashlib

    from kvtool.workloads.traces.source import TraceSource

    found = hashlib.sha256()
    for path in paths:
        for _, data in TraceSource(path).contents():
            found.update(data)
    return found.hexdigest()


def _written(file: Path, requests: list[TraceRequest], assumptions: list[str]) -> TraceDocument:
    """The trace written, and its document."""
    from kvtool.results import TraceDocument
    from kvtool.workloads.traces.statistics import session_statistics
    from kvtool.workloads.traces.summary import Sums
    from kvtool.workloads.traces.write import write_trace

    write_trace(file, requests)
    sums = Sums()
    for request in requests:
        sums.add(request)
    return TraceDocument(
        trace=sums.summary(file.name, "mooncake", _sha256([file])),
        findings=[],
        statistics=session_statistics(requests),
        assumptions=assumptions,
    )


def _blocks(capacity: str) -> int | None:
    from kvtool.replay.capacity import in_unit, parse_capacity

    return in_unit(parse_capacity(capacity), None)


def _floor(model: Model | None, card: NamedCard) -> PrefillFloor | None:
    """Milliseconds need both a model and a card. Raises KvtoolError for a card alone."""
    gpu = card.found()
    if gpu is None:
        return None
    if model is None:
        raise KvtoolError(f"milliseconds on {gpu.name} need a model: --model llama-3.1-8b")
    from kvtool.replay.saved import prefill_floor

    return prefill_floor(model, gpu)
