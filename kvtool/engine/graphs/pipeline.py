"""Decode steps that the device feeds to itself: the host launches the next before it has read the tokens of the last.

At most two steps are launched and not read. What is launched later runs later, so pages that a finished sequence gives
back may be handed out at once: a step that still writes to them is done before anybody else uses them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from kvtool.cache.manager import SequenceCache
from kvtool.engine.batch import to_device
from kvtool.engine.graphs.capture import DecodeGraphs
from kvtool.engine.graphs.changes import RowChanges
from kvtool.engine.graphs.decode_step import DecodeRows
from kvtool.engine.sampler import draw_of
from kvtool.engine.scheduler import Work
from kvtool.engine.sequence import Sequence

MAX_IN_FLIGHT = 2


@dataclass(slots=True)
class Occupant:
    """What a row holds on the device: a sequence, the position its next step computes, and how many of its pages.

    `cache` tells a sequence that gave way and came back from what it was: its pages are others, at the same position
    perhaps. Without a sequence, nobody knows what the row holds.
    """

    sequence: Sequence | None = None
    cache: SequenceCache | None = None
    position: int = 0
    num_pages: int = 0


@dataclass(frozen=True, slots=True)
class Flight:
    """A step under way: `rows[i]` is where `work[i]` has its token in `tokens` [R], None where it gets none; they are
    on the host once `landed` is. `fresh` are they on the device, where no row of the pipeline holds them."""

    work: list[Work]
    rows: list[int | None]
    tokens: Tensor
    landed: torch.cuda.Event | None
    logits: Tensor | None
    fresh: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Landed:
    """What came of a step, for the sequences that still waited for it; `logits` are their rows, if they are kept."""

    work: list[Work]
    tokens: list[int]
    logits: Tensor | None


class DecodePipeline:
    """Launches decode steps, also behind a step that prefills, and waits for their tokens. Rows are written where they
    changed since the last step."""

    def __init__(self, rows: DecodeRows, graphs: DecodeGraphs) -> None:
        num_rows, on_gpu = len(rows.positions), rows.positions.is_cuda
        self.graphs = graphs
        self.rows = rows
        self._occupants: list[Occupant] = []  # of the first rows; those behind are padding
        self._flights: deque[Flight] = deque()
        self.num_launched = 0
        self._num_flights = 0
        self._hosts = [torch.zeros(num_rows, dtype=torch.int64, pin_memory=on_gpu) for _ in range(MAX_IN_FLIGHT)]
        self._events = [torch.cuda.Event() if on_gpu else None for _ in range(MAX_IN_FLIGHT)]

    @property
    def last(self) -> list[Work]:
        """The work of the step that was launched last, while it is not read; empty when nothing is under way."""
        return self._flights[-1].work if self._flights else []

    def launch(self, work: list[Work], *, keep_logits: bool) -> None:
        """A decode step of these sequences. With a step under way they must be the same, and go on from there."""
        placed = self._placed([item.sequence for item in work])
        self._write(placed)
        draw = draw_of(item.sequence.params for item in work)
        logits = self.graphs.step(len(placed), draw, keep_logits=keep_logits)
        row_of: dict[Sequence, int | None] = {sequence: row for row, sequence in enumerate(placed)}
        self.num_launched += 1
        self._fly(
            [row_of[item.sequence] for item in work],
            self.rows.token_ids[: len(placed)],
            work=work,
            logits=None if logits is None else logits.clone(),  # before the next step overwrites them
        )

    def follow(self, work: list[Work], tokens: Tensor, logits: Tensor | None) -> None:
        """A step that somebody else launched: `tokens` and `logits`, on the device, are those of the work that it
        completes. What is launched next goes on from there."""
        number = count()
        rows = [next(number) if item.completes else None for item in work]
        self._fly(rows, tokens, work=work, logits=logits, fresh=tokens)

    def _fly(
        self,
        rows: list[int | None],
        tokens: Tensor,
        *,
        work: list[Work],
        logits: Tensor | None,
        fresh: Tensor | None = None,
    ) -> None:
        """Have the tokens, on the device, sent to the host."""
        turn = self._num_flights % MAX_IN_FLIGHT
        self._num_flights += 1
        host, landed = self._hosts[turn], self._events[turn]
        host[: len(tokens)].copy_(tokens, non_blocking=True)
        if landed is not None:
            landed.record()
        self._flights.append(Flight(work, rows, host, landed, logits, fresh))

    def wait(self) -> Landed:
        """The tokens of the oldest step under way. A sequence that ended before it has no use for its token."""
        flight = self._flights[0]
        if flight.landed is not None:
            flight.landed.synchronize()
        tokens = flight.tokens.tolist()
        self._flights.popleft()
        live = [
            (item, row) for item, row in zip(flight.work, flight.rows, strict=True) if not item.sequence.is_finished
        ]
        rows = [row for _, row in live if row is not None]
        return Landed(
            work=[item for item, _ in live],
            tokens=[tokens[row] for row in rows],
            logits=None if flight.logits is None else flight.logits[rows],
        )

    def drop_finished(self) -> None:
        """Nobody waits for a step whose sequences have all ended."""
        if all(item.sequence.is_finished for item in self.last):
            self._flights.clear()

    def forget(self) -> None:
        """After an error or an interrupt: what is under way is not read, and every row is written anew."""
        self._flights.clear()
        self._occupants = [Occupant() for _ in range(len(self.rows.positions))]

    def _placed(self, sequences: list[Sequence]) -> list[Sequence]:
        """The sequences by row: as many first rows as there are sequences, and as few of them written as can be.

        row              0  1  2  3
        held             A  B  C  D
        to decode        A  C  D  E    B has ended, E is new
        placed           A  E  C  D

        held             A  B  C  D
        to decode        D  A          D is behind the first two rows
        placed           A  D
        """
        held = [occupant.sequence for occupant in self._occupants[: len(sequences)]]
        held += [None] * (len(sequences) - len(held))
        staying = set(sequences) & set(held)
        arriving = (sequence for sequence in sequences if sequence not in staying)
        return [next(arriving) if sequence is None or sequence not in staying else sequence for sequence in held]

    def _write(self, placed: list[Sequence]) -> None:
        """Make the rows hold these sequences, behind the step under way if there is one, whose tokens the host has not
        read."""
        coming = {item.sequence: item.num_tokens for item in self.last}
        changes = RowChanges()
        for row in range(len(placed), len(self._occupants)):
            changes.clear(row)
        del self._occupants[len(placed) :]
        self._occupants += [Occupant() for _ in range(len(placed) - len(self._occupants))]
        for row, sequence in enumerate(placed):
            self._occupy(row, sequence, sequence.num_computed + coming.get(sequence, 0), changes)
        changes.send(self.rows)
        if self._flights and self._flights[-1].fresh is not None:
            self._take_fresh(placed, self._flights[-1])

    def _take_fresh(self, placed: list[Sequence], flight: Flight) -> None:
        """The rows of these sequences get the tokens of a step that no row holds."""
        assert flight.fresh is not None
        at = {item.sequence: row for item, row in zip(flight.work, flight.rows, strict=True)}
        found = [row for sequence in placed if (row := at[sequence]) is not None]
        to, of = to_device(self.rows.positions.device, [list(range(len(placed))), found], torch.int64)
        self.rows.token_ids.index_copy_(0, to, flight.fresh[of])

    def _occupy(self, row: int, sequence: Sequence, position: int, changes: RowChanges) -> None:
        """A row that holds the sequence at this position needs its new pages only."""
        assert sequence.pages is not None
        occupant = self._occupants[row]
        if occupant.cache is not sequence.pages or occupant.position != position:
            known = position == sequence.num_computed or self._flights[-1].fresh is not None
            assert known, "the host has not read the token of this row"
            changes.put(row, sequence, position)
            occupant = self._occupants[row] = Occupant(sequence, sequence.pages)
        pages = sequence.pages.table.pages
        if len(pages) > occupant.num_pages:
            width = self.rows.block_tables.shape[1]
            changes.extend(row * width + occupant.num_pages, pages[occupant.num_pages :])
        occupant.num_pages, occupant.position = len(pages), position + 1
