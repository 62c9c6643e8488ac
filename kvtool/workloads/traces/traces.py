"""Open a trace: which format it is, and its requests, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kvtool.system.errors import KvtoolError, did_you_mean
from kvtool.workloads.traces.azure import AZURE
from kvtool.workloads.traces.bailian import BAILIAN
from kvtool.workloads.traces.base import TraceFormat, TraceRequest
from kvtool.workloads.traces.kv_events import KV_EVENTS
from kvtool.workloads.traces.mooncake import MOONCAKE
from kvtool.workloads.traces.sessions import SESSIONS
from kvtool.workloads.traces.source import TraceSource

FORMATS = {form.name: form for form in (MOONCAKE, BAILIAN, SESSIONS, AZURE, KV_EVENTS)}


class Trace:
    """A trace on disk, in a known format. Each iteration reads it anew; `sha256` is known after a whole one."""

    def __init__(self, path: Path, form: TraceFormat, block_size: int) -> None:
        self.path = path
        self.name = path.name
        self.format = form
        self._block_size = block_size
        self._source = TraceSource(path)

    def __iter__(self) -> Iterator[TraceRequest]:
        """The requests in the order of the file. Raises KvtoolError naming the line that cannot be decoded."""
        self._source = TraceSource(self.path)
        return self.format.read(self._source, self._block_size)

    @property
    def sha256(self) -> str:
        """Of the uncompressed bytes that the last iteration read."""
        return self._source.sha256


def open_trace(path: Path, *, form: str | None = None, block_size: int | None = None) -> Trace:
    """The trace at `path`, a file or a folder. `form` names its format, which its first bytes tell otherwise;
    `block_size` (tokens) replaces the one of its publisher. Raises KvtoolError for what is no trace.
    """
    if form is not None and form not in FORMATS:
        raise KvtoolError(f"trace format {form!r} is not one of {', '.join(FORMATS)}{did_you_mean(form, FORMATS)}")
    if block_size is not None and block_size < 1:
        raise KvtoolError(f"block size {block_size} must be 1 token or more")
    chosen = FORMATS[form] if form is not None else _recognised(path)
    return Trace(path, chosen, chosen.block_size if block_size is None else block_size)


def _recognised(path: Path) -> TraceFormat:
    head = TraceSource(path).head()
    for form in FORMATS.values():
        if form.recognises(head):
            return form
    first = head.partition(b"\n")[0][:60].decode(errors="replace")
    what = f"begins with {first!r}" if head.strip() else "is empty"
    raise KvtoolError(f"{path.name} {what}, which is none of {', '.join(FORMATS)}; other logs: kvtool trace import")
