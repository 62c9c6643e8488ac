"""KV cache events of vLLM and SGLang, as published over ZMQ in msgpack and recorded to a file.

A recording is the payloads, one after the other, as they are or each after its length in four big-endian bytes. A
payload is a batch `[time, events, rank]`; an event is a map with a `type`, or in older engines an array that begins
with it (vllm/distributed/kv_events.py, sglang/srt/disaggregation/kv_events.py).

Events tell what was stored, not what was hit: a request served whole from the cache leaves none. Blocks stored below
the end of a chain go on with its request; blocks stored below another block are a request that hit all above them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from kvtool.workloads.traces.base import TraceFormat, TraceRequest, undecodable
from kvtool.workloads.traces.msgpack import end_of_object
from kvtool.workloads.traces.source import TraceSource

BlockHash = int | bytes
DEVICE_MEDIUMS = (None, "GPU")
FULL_ATTENTION = (None, "full_attention", "mla_attention")
FRAME_BYTES = 4


class _Batch(msgspec.Struct, frozen=True, array_like=True):
    ts: float
    events: list[msgspec.Raw]
    rank: int | None = None


class _Stored(msgspec.Struct, frozen=True, tag="BlockStored"):
    block_hashes: list[BlockHash]
    parent_block_hash: BlockHash | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    session_id: str | None = None


class _Removed(msgspec.Struct, frozen=True, tag="BlockRemoved"):
    block_hashes: list[BlockHash]
    medium: str | None = None


class _Cleared(msgspec.Struct, frozen=True, tag="AllBlocksCleared"):
    pass


class _StoredArray(msgspec.Struct, frozen=True, array_like=True, tag="BlockStored"):
    block_hashes: list[BlockHash]
    parent_block_hash: BlockHash | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None


class _RemovedArray(msgspec.Struct, frozen=True, array_like=True, tag="BlockRemoved"):
    block_hashes: list[BlockHash]
    medium: str | None = None


class _ClearedArray(msgspec.Struct, frozen=True, array_like=True, tag="AllBlocksCleared"):
    pass


Event = _Stored | _Removed | _Cleared | _StoredArray | _RemovedArray | _ClearedArray
_MAPS: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(_Stored | _Removed | _Cleared)
_ARRAYS: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(_StoredArray | _RemovedArray | _ClearedArray)
_BATCH = msgspec.msgpack.Decoder(_Batch)


@dataclass(slots=True)
class _Chain:
    """A request while its blocks are being stored: `path` from the root to its last block."""

    line: int
    arrival_s: float
    block_size: int
    session: str
    path: list[int]
    stored: int


@dataclass(slots=True)
class _Chains:
    """What has been stored so far: each block's number, its parent, and the chain that it ends, if it ends one."""

    numbers: dict[BlockHash, int] = field(default_factory=dict)
    parents: dict[int, int | None] = field(default_factory=dict)
    open: dict[int, _Chain] = field(default_factory=dict)
    all: list[_Chain] = field(default_factory=list)

    def store(self, line: int, time_s: float, event: _Stored | _StoredArray) -> None:
        """Go on with the chain that ends at the event's parent, or begin one below it."""
        blocks = [self.numbers.setdefault(block, len(self.numbers)) for block in event.block_hashes]
        parent = None if event.parent_block_hash is None else self._number(event.parent_block_hash)
        for above, block in zip([parent, *blocks], blocks, strict=False):
            self.parents.setdefault(block, above)
        chain = self.open.pop(parent, None) if parent is not None else None
        if chain is None:
            session = getattr(event, "session_id", None) or ""
            chain = _Chain(line, time_s, event.block_size, session, self._path(parent), stored=0)
            self.all.append(chain)
        chain.path += blocks
        chain.stored += len(blocks)
        self.open[chain.path[-1]] = chain

    def remove(self, block_hashes: list[BlockHash]) -> None:
        """Chains whose last block is gone are over."""
        for block in block_hashes:
            self.open.pop(self.numbers.get(block, -1), None)

    def _number(self, block: BlockHash) -> int:
        number = self.numbers.setdefault(block, len(self.numbers))
        self.parents.setdefault(number, None)
        return number

    def _path(self, block: int | None) -> list[int]:
        """From the root, or the first block that the recording knows, to `block`."""
        path: list[int] = []
        while block is not None:
            path.append(block)
            block = self.parents[block]
        return path[::-1]


def read(source: TraceSource, block_size: int) -> Iterator[TraceRequest]:
    """The requests in the order in which they began to store blocks; `line` is the number of the event.

    Only blocks of the device and of full attention count: other tiers and other groups repeat the same tokens. Raises
    KvtoolError naming the batch that cannot be decoded.
    """
    chains = _Chains()
    start_s: float | None = None
    for number, time_s, event in _events(source):
        start_s = time_s if start_s is None else start_s
        if isinstance(event, _Cleared | _ClearedArray):
            chains.open.clear()
        elif event.medium not in DEVICE_MEDIUMS:
            continue
        elif isinstance(event, _Removed | _RemovedArray):
            chains.remove(event.block_hashes)
        elif event.block_hashes and getattr(event, "kv_cache_spec_kind", None) in FULL_ATTENTION:
            chains.store(number, time_s - start_s, event)
    for chain in chains.all:
        tokens = len(chain.path) * chain.block_size
        yield TraceRequest(chain.line, chain.arrival_s, tokens, 0, chain.block_size, chain.path, chain.session)


def _events(source: TraceSource) -> Iterator[tuple[int, float, Event]]:
    """Each event with its number and the time of its batch."""
    count = 0
    for batch_number, payload in enumerate(_payloads(source), 1):
        try:
            batch = _BATCH.decode(payload)
            for raw in batch.events:
                count += 1
                yield count, batch.ts, _event(bytes(raw))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise undecodable(source, batch_number, error, "batch") from error


def _event(raw: bytes) -> Event:
    is_array = raw[0] & 0xF0 == 0x90 or raw[0] in (0xDC, 0xDD)
    return _ARRAYS.decode(raw) if is_array else _MAPS.decode(raw)


def _payloads(source: TraceSource) -> Iterator[bytes]:
    """The payloads of a recording, framed or not. Raises KvtoolError for one that is cut short."""
    number = 0
    for _, data in source.contents():
        framed, offset = data[:1] == b"\0", 0
        while offset < len(data):
            number += 1
            start = offset + FRAME_BYTES if framed else offset
            try:
                size = int.from_bytes(data[offset:start], "big")
                end = start + size if framed else end_of_object(data, start)
            except ValueError as error:
                raise undecodable(source, number, error, "batch") from error
            if end > len(data) or end == start:
                raise undecodable(source, number, "the recording ends within it", "batch")
            yield data[start:end]
            offset = end


def recognises(head: bytes) -> bool:
    """It begins with a msgpack array of two or three, or with a frame that holds one."""
    first = head[FRAME_BYTES : FRAME_BYTES + 1] if head[:1] == b"\0" else head[:1]
    return first in (b"\x92", b"\x93")


KV_EVENTS = TraceFormat("kv-events", block_size=0, chained=True, recognises=recognises, read=read, whole_blocks=True)
