"""A trace as accesses to the nodes of its prefix tree: a few bytes a block, whatever the blocks are called.

A node is a block id below its parent's node, so a block is its whole prefix: an id that stands after different ids is
as many nodes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from kvtool.cache.retention import Retention
from kvtool.replay.loops.core import Core, FloatArray, IntArray, NodeArray, Tree, Walk
from kvtool.system.errors import KvtoolError
from kvtool.workloads.traces import Trace, TraceRequest

BLOCKS_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class Accesses:
    """All requests of a trace, in the order of their replay.

    `nodes`, `starts` and `parents` are those of a `Walk`; `lines`, `arrival_s`, `input_tokens` and `output_tokens`
    are per request. `shared_ids` counts ids with more than one parent. `retentions` has the requests, by their place,
    that say how important they are.
    """

    name: str
    sha256: str
    format: str
    block_size: int
    nodes: NodeArray
    starts: IntArray
    parents: NodeArray
    lines: IntArray
    arrival_s: FloatArray
    input_tokens: IntArray
    output_tokens: IntArray
    shared_ids: int
    retentions: Mapping[int, Retention] = field(default_factory=dict)

    @property
    def num_requests(self) -> int:
        return len(self.lines)

    @property
    def lengths(self) -> IntArray:
        """Blocks of each request, int64 [requests]."""
        return np.diff(self.starts)

    def walk(self, sizes: IntArray | None = None) -> Walk:
        """The paths of the requests, of blocks with these bytes (None: of one size)."""
        return Walk(self.nodes, self.starts, self.parents, sizes)

    def depths(self) -> NodeArray:
        """Blocks above each node, int32 [nodes]."""
        depths = np.zeros(len(self.parents), dtype=np.int32)
        lengths = self.lengths
        # Each node's depth is its place in any request that has it.
        depths[self.nodes] = np.arange(len(self.nodes)) - np.repeat(self.starts[:-1], lengths)
        return depths

    def tokens_of(self, blocks: IntArray) -> IntArray:
        """Prompt tokens in the first `blocks` [requests] blocks of each request: whole ones but for the last."""
        return np.minimum(blocks * self.block_size, self.input_tokens)

    def by_time(self) -> Accesses:
        """The requests by their time of arrival; those of one time stay in their order."""
        order = np.argsort(self.arrival_s, kind="stable")
        lengths = self.lengths[order]
        starts = np.concatenate(([0], np.cumsum(lengths)))
        picked = np.arange(len(self.nodes)) + np.repeat(self.starts[order] - starts[:-1], lengths)
        return replace(
            self,
            nodes=self.nodes[picked],
            starts=starts,
            lines=self.lines[order],
            arrival_s=self.arrival_s[order],
            input_tokens=self.input_tokens[order],
            output_tokens=self.output_tokens[order],
            retentions={new: self.retentions[old] for new, old in enumerate(order.tolist()) if old in self.retentions},
        )


def read_accesses(trace: Trace, core: Core) -> Accesses:
    """The trace, read once. Raises KvtoolError for a line that cannot be decoded, a trace without requests or without
    blocks, and one whose blocks differ in size.
    """
    tree = core.tree()
    columns = _Columns(tree)
    for request in trace:
        columns.add(request, trace.name)
    columns.flush()
    if not columns.lines:
        raise KvtoolError(f"{trace.name} has no requests")
    if not columns.nodes:
        raise KvtoolError(f"{trace.name} ({trace.format.name}) has lengths only: a replay needs the blocks of prompts")
    ids = tree.ids()
    return Accesses(
        name=trace.name,
        sha256=trace.sha256,
        format=trace.format.name,
        block_size=columns.block_size,
        nodes=np.concatenate(columns.nodes),
        starts=np.concatenate(([0], np.cumsum(np.frombuffer(columns.lengths, dtype=np.int64)))),
        parents=tree.parents(),
        lines=np.frombuffer(columns.lines, dtype=np.int64),
        arrival_s=np.frombuffer(columns.arrival_s, dtype=np.float64),
        input_tokens=np.frombuffer(columns.input_tokens, dtype=np.int64),
        output_tokens=np.frombuffer(columns.output_tokens, dtype=np.int64),
        shared_ids=len(ids) - len(np.unique(ids)),
        retentions=columns.retentions,
    )


class _Columns:
    """The requests so far, column by column; ids become nodes a chunk at a time."""

    def __init__(self, tree: Tree) -> None:
        self.lines, self.lengths = array("q"), array("q")
        self.input_tokens, self.output_tokens = array("q"), array("q")
        self.arrival_s = array("d")
        self.nodes: list[NodeArray] = []
        self.block_size = 0
        self.retentions: dict[int, Retention] = {}
        self._tree = tree
        self._ids = array("q")
        self._flushed = 0

    def add(self, request: TraceRequest, name: str) -> None:
        if request.block_ids and request.block_size != (self.block_size or request.block_size):
            sizes = f"{self.block_size} and {request.block_size} tokens"
            raise KvtoolError(f"{name}, line {request.line}: blocks of {sizes} do not go into one replay")
        if request.block_ids:
            self.block_size = request.block_size
        self._ids.extend(_signed(request, name))
        if request.retention is not None:
            self.retentions[len(self.lines)] = request.retention
        self.lines.append(request.line)
        self.lengths.append(len(request.block_ids))
        self.input_tokens.append(request.input_tokens)
        self.output_tokens.append(request.output_tokens)
        self.arrival_s.append(request.arrival_s)
        if len(self._ids) >= BLOCKS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Turn the ids that wait into nodes."""
        if self._ids:
            lengths = np.array(self.lengths[self._flushed :], dtype=np.int64)
            self.nodes.append(self._tree.add(np.array(self._ids, dtype=np.int64), lengths))
        self._flushed = len(self.lengths)
        self._ids = array("q")


def _signed(request: TraceRequest, name: str) -> array[int]:
    """Its block ids in 64 bits: those from 2**63 on, as hashes without a sign have them, become the negative ones.

    Raises KvtoolError for an id of more bits.
    """
    try:
        return array("q", request.block_ids)
    except OverflowError:
        ids = [block - (1 << 64) if block >> 63 == 1 else block for block in request.block_ids]
    try:
        return array("q", ids)
    except OverflowError:
        raise KvtoolError(f"{name}, line {request.line}: a block id has more than 64 bits") from None


def requests_of(accesses: Accesses) -> Iterable[NodeArray]:
    """The nodes of each request."""
    return np.split(accesses.nodes, accesses.starts[1:-1])
