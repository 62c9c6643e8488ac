"""Capacities as users write them, and the bytes of a trace's blocks for a given model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvtool.catalog.model import Model
from kvtool.replay.accesses import Accesses
from kvtool.replay.loops.core import IntArray
from kvtool.sizing.formats import parse_cache_format
from kvtool.sizing.layers import layer_specs, state_format
from kvtool.sizing.specs import ConstantSpec, CrossSpec
from kvtool.system.errors import KvtoolError
from kvtool.units import format_bytes, parse_size

NO_LIMIT = "none"


@dataclass(frozen=True, slots=True)
class Capacity:
    """Room for `blocks`, or for `num_bytes`; both None for no limit."""

    blocks: int | None = None
    num_bytes: int | None = None

    def __str__(self) -> str:
        if self.num_bytes is not None:
            return format_bytes(self.num_bytes)
        return NO_LIMIT if self.blocks is None else f"{self.blocks:,} blocks"


def parse_capacity(text: str) -> Capacity:
    """`1000` blocks, `20GiB`, or `none` for no limit. Raises KvtoolError."""
    if text.strip().lower() == NO_LIMIT:
        return Capacity()
    if text.strip().isdecimal():
        return Capacity(blocks=int(text))
    try:
        return Capacity(num_bytes=parse_size(text))
    except KvtoolError:
        raise KvtoolError(f"capacity {text!r} is neither blocks (1000) nor bytes (20GiB) nor none") from None


@dataclass(frozen=True, slots=True)
class BlockBytes:
    """What a cached block of one model takes: a page of every layer that keeps tokens, and, on every `state_every`-th
    block of a path, a snapshot of the recurrent state, without which no request can go on from there.
    """

    page_bytes: int
    state_bytes: int
    state_every: int

    @property
    def uniform(self) -> int | None:
        """Bytes of every block, or None where they differ."""
        if self.state_bytes and self.state_every > 1:
            return None
        return self.page_bytes + self.state_bytes

    @property
    def match_blocks(self) -> int:
        """A hit is a multiple of so many blocks."""
        return self.state_every if self.state_bytes else 1

    def sizes(self, accesses: Accesses) -> IntArray | None:
        """Bytes of each node, int64 [nodes]; None where all are the same."""
        if self.uniform is not None:
            return None
        snapshot = (accesses.depths() + 1) % self.state_every == 0
        sizes: IntArray = self.page_bytes + self.state_bytes * snapshot.astype(np.int64)
        return sizes


def block_bytes(model: Model, *, block_size: int, kv_cache_dtype: str, state_every: int = 1) -> BlockBytes:
    """Bytes that a block of `block_size` tokens takes on all ranks of one copy of the model, from sizing's specs.

    Raises KvtoolError for a dtype that the model cannot have, and where nothing of a block could be cached.
    """
    if state_every < 1:
        raise KvtoolError(f"--state-every {state_every} must be 1 block or more")
    cache_format = parse_cache_format(kv_cache_dtype, model.dtype)
    specs = layer_specs(model, cache_format, state=state_format(model))
    page_bytes = sum(
        spec.page_bytes(block_size) for spec in specs if spec.per_token and not isinstance(spec, CrossSpec)
    )
    state_bytes = sum(spec.state_bytes for spec in specs if isinstance(spec, ConstantSpec))
    if not page_bytes + state_bytes:
        raise KvtoolError(f"{model.id} keeps nothing of a prompt that a cache could hold")
    return BlockBytes(page_bytes=page_bytes, state_bytes=state_bytes, state_every=state_every)


def in_unit(capacity: Capacity, room: BlockBytes | None) -> int | None:
    """The capacity in the unit of `BlockBytes.sizes`: bytes where blocks differ, else blocks; None for no limit.

    Raises KvtoolError for bytes without a model, and for blocks where these differ in bytes.
    """
    if capacity.num_bytes is None:
        if capacity.blocks is not None and room is not None and room.uniform is None:
            raise KvtoolError(f"a capacity of {capacity} says nothing where blocks differ in bytes: write 20GiB")
        return capacity.blocks
    if room is None:
        raise KvtoolError(f"a capacity of {capacity} needs a MODEL, whose blocks have bytes: kvtool replay TRACE MODEL")
    return capacity.num_bytes if room.uniform is None else capacity.num_bytes // room.uniform
