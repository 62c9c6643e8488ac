"""Azure's LLM inference traces: CSV of a wall-clock time and two lengths, nothing of what the prompts hold.

From Azure/AzurePublicDataset. Times have seven digits of a second and, in the newer files, an offset.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from datetime import UTC, datetime

from kvtool.workloads.traces.base import TraceFormat, TraceRequest, checked, undecodable
from kvtool.workloads.traces.source import TraceSource

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(\.\d+)?([+-]\d\d:\d\d)?")


def read(source: TraceSource, block_size: int) -> Iterator[TraceRequest]:
    """The requests in the file's order, their times after the first row's. Raises KvtoolError naming the line."""
    start_s: float | None = None
    for number, text in source.lines():
        try:
            row = next(csv.reader([text.decode().strip().lstrip("\ufeff")]))
            if row == list(COLUMNS):
                continue
            time_s, tokens = _seconds(row[0]), [int(value) for value in row[1:3]]
            input_tokens, output_tokens = tokens
        except (ValueError, IndexError, csv.Error) as error:
            raise undecodable(source, number, f"{error}; a row is {','.join(COLUMNS)}") from error
        start_s = time_s if start_s is None else start_s
        yield checked(source, TraceRequest(number, time_s - start_s, input_tokens, output_tokens, block_size, []))


def _seconds(text: str) -> float:
    """Seconds since 1970 of a time with any number of digits after the second. Raises ValueError."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text[:40]!r} is not a time as 2023-11-16 18:15:46.6805900")
    whole = datetime.fromisoformat(match[1] + (match[3] or "+00:00")).astimezone(UTC)
    return whole.timestamp() + float(match[2] or 0)


def recognises(head: bytes) -> bool:
    """Its first line names the three columns."""
    return head.lstrip(b"\xef\xbb\xbf").startswith(",".join(COLUMNS).encode())


AZURE = TraceFormat("azure", block_size=0, chained=False, recognises=recognises, read=read)
