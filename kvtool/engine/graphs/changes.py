"""What the host has to tell the rows of a decode step, gathered and sent in at most three small copies."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from kvtool.engine.batch import to_device
from kvtool.engine.graphs.decode_step import PADDING, DecodeRows
from kvtool.engine.sequence import Sequence


@dataclass(slots=True)
class RowChanges:
    """Rows whose sequence changed, and entries of block tables (counted through all rows) that are new."""

    at: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    temperatures: list[float] = field(default_factory=list)
    top_ps: list[float] = field(default_factory=list)
    entries: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)

    def put(self, row: int, sequence: Sequence, position: int) -> None:
        """The row computes the token of `sequence` at this position; where the host does not know it yet, 0."""
        token_id = sequence.token_ids[position] if position < len(sequence.token_ids) else 0
        self._row(row, token_id, position, sequence.params.divisor, sequence.params.top_p)

    def clear(self, row: int) -> None:
        """The row is padding."""
        self._row(row, 0, PADDING, 0.0, 1.0)

    def extend(self, first_entry: int, pages: list[int]) -> None:
        """These pages, from an entry of a block table on."""
        self.entries += range(first_entry, first_entry + len(pages))
        self.pages += pages

    def _row(self, row: int, token_id: int, position: int, temperature: float, top_p: float) -> None:
        self.at.append(row)
        self.token_ids.append(token_id)
        self.positions.append(position)
        self.temperatures.append(temperature)
        self.top_ps.append(top_p)

    def send(self, rows: DecodeRows) -> None:
        """Write them, behind the steps that were launched before."""
        device = rows.positions.device
        if self.at:
            at, token_ids, positions = to_device(device, [self.at, self.token_ids, self.positions], torch.int64)
            temperatures, top_ps = to_device(device, [self.temperatures, self.top_ps], torch.float32)
            rows.token_ids.index_copy_(0, at, token_ids)
            rows.positions.index_copy_(0, at, positions)
            rows.temperatures.index_copy_(0, at, temperatures)
            rows.top_ps.index_copy_(0, at, top_ps)
        if self.entries:
            at, pages = to_device(device, [self.entries, self.pages], torch.int64)
            rows.block_tables.view(-1).index_copy_(0, at, pages.int())
