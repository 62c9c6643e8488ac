"""A log as a trace: each prompt as token ids, cut into blocks whose ids stand for whole prefixes."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator

from kvtool.system.errors import KvtoolError
from kvtool.workloads.logs.entries import LogEntry
from kvtool.workloads.logs.layout import Layout
from kvtool.workloads.making.prompt import BlockNames
from kvtool.workloads.traces.base import TraceRequest

Encode = Callable[[str], list[int]]


def trace_of(
    entries: Iterable[LogEntry], *, block_size: int, encode: Encode | None, layout: Layout | None
) -> Iterator[TraceRequest]:
    """The requests in the log's order. `encode` turns text into token ids and `layout` a chat into text; without them
    only entries with token ids go. Raises KvtoolError naming the line.
    """
    names = BlockNames()
    for entry in entries:
        ids = token_ids(entry, encode, layout)
        yield TraceRequest(
            line=entry.line,
            arrival_s=entry.arrival_s,
            input_tokens=len(ids),
            output_tokens=entry.output_tokens,
            block_size=block_size,
            block_ids=names.names(_blocks(entry, ids, block_size)),
            session=entry.session,
        )


def token_ids(entry: LogEntry, encode: Encode | None, layout: Layout | None) -> list[int]:
    """The prompt as token ids. Raises KvtoolError where that needs a tokenizer or a template that there is not."""
    if entry.token_ids is not None:
        return entry.token_ids
    if encode is None or (entry.messages is not None and layout is None):
        raise KvtoolError(
            f"line {entry.line} has text: --tokenizer FOLDER names the model's tokenizer.json and template"
        )
    return encode(text_of(entry, layout))


def text_of(entry: LogEntry, layout: Layout | None) -> str:
    """The prompt as text, which a chat becomes by `layout`."""
    if entry.messages is None:
        return entry.text or ""
    assert layout is not None
    return layout(entry)


def _blocks(entry: LogEntry, ids: list[int], block_size: int) -> list[Hashable]:
    """What each block holds, a few bytes a token."""
    try:
        held = array("q", ids)
    except OverflowError:
        raise KvtoolError(f"line {entry.line}: a token id has more than 64 bits") from None
    return [held[start : start + block_size].tobytes() for start in range(0, len(held), block_size)]
