"""Steps over one pool, of which those that only decode are taken down once and then replayed: between the kernels of a
small model, on a CPU, the host's own work takes as long as they do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvtool.engine.batch import StepBatch
from kvtool.engine.decoder.context import StepContext
from kvtool.engine.decoder.transformer import Transformer
from kvtool.kernels.interface import Kernels, Replay, Rotation
from kvtool.kernels.pages import Pages
from kvtool.kernels.rows import Rows

MOST_ROWS = 64  # of more the host's work is a small part
FEWEST_PAGES = 8
MOST_SHAPES = 32


@dataclass(frozen=True, slots=True)
class Recorded:
    """A decode of T rows with block tables of N pages: what it reads, how it is done again, and its logits."""

    x: Tensor  # [T, hidden]
    step: StepContext
    replay: Replay
    logits: Tensor

    def again(self, x: Tensor, step: StepContext) -> Tensor:
        """The logits of another step of as many rows; its block tables may be narrower."""
        self.x.copy_(x)
        for mine, given in zip(_inputs(self.step), _inputs(step), strict=True):
            mine.copy_(given)
        own, rows = _rows(self.step), _rows(step)
        own.seq_lens.copy_(rows.seq_lens)
        own.block_tables[:, : rows.block_tables.shape[1]].copy_(rows.block_tables)
        self.replay()
        return self.logits


class RecordedSteps:
    """A transformer over `layers`, the pages of one pool. A decode is taken down when one of its shape comes for the
    second time; what the kernels cannot take down runs as ever."""

    def __init__(self, transformer: Transformer, layers: list[Pages], kernels: Kernels, *, ranks: int = 1) -> None:
        """What several `ranks` tell each other in a step cannot be taken down."""
        self._transformer, self._layers, self._kernels = transformer, layers, kernels
        self._recorded: dict[tuple[int, int], Recorded] = {}
        self._seen: set[tuple[int, int]] = set()
        self.most_rows = MOST_ROWS if ranks == 1 and layers[0].k.device.type == "cpu" else 0

    def __len__(self) -> int:
        """How many shapes are taken down."""
        return len(self._recorded)

    @torch.inference_mode()
    def __call__(self, batch: StepBatch, *, wait: Callable[[int], None] | None = None) -> Tensor:
        """Logits [sampled rows, vocab], which the next step may overwrite. With pages on their way, for which `wait`
        waits layer by layer, the step is not replayed."""
        alone = wait is None and batch.prefill is None
        if batch.decode is None or not alone or batch.num_decodes > self.most_rows:
            return self._transformer(batch, self._layers, self._kernels, wait=wait)
        num_rows, width = batch.decode.block_tables.shape
        x, step = self._transformer.start(batch, self._layers, self._kernels)
        fitting = [pages for rows, pages in self._recorded if rows == num_rows and pages >= width]
        if fitting:
            return self._recorded[num_rows, min(fitting)].again(x, step)
        shape = num_rows, _room_for(width)
        if shape in self._seen:
            return self._record(x, step, shape)
        self._seen.add(shape)
        return self._transformer.finish(x, step, self._layers)

    def prepare(self, num_rows: int, num_pages: int) -> None:
        """Take down the decode of so many sequences of up to `num_pages` pages now, over padding alone."""
        if 0 < num_rows <= self.most_rows and (num_rows, num_pages) not in self._recorded:
            x, step = self._transformer.start(_padding(num_rows), self._layers, self._kernels)
            self._record(x, step, (num_rows, num_pages))

    @torch.inference_mode()
    def _record(self, x: Tensor, step: StepContext, shape: tuple[int, int]) -> Tensor:
        """The step's logits; it is kept where it could be taken down."""
        x, step = x.clone(), _own(step, shape[1])
        logits, replay = self._kernels.record(lambda: self._transformer.finish(x, step, self._layers))
        if replay is None:
            self.most_rows = shape[0] - 1  # what stands in the way is the model, the dtype, or so many rows
            return logits
        if len(self._recorded) == MOST_SHAPES:
            del self._recorded[next(iter(self._recorded))]  # the oldest
        self._recorded[shape] = Recorded(x, step, replay, logits)
        return logits


def _rows(step: StepContext) -> Rows:
    assert step.batch.decode is not None
    return step.batch.decode


def _inputs(step: StepContext) -> tuple[Tensor, ...]:
    """What layers read of a decode, but for its rows."""
    local = () if step.local_rotation is step.rotation else step.local_rotation
    return step.batch.slots, *step.rotation, *local


def _own(step: StepContext, num_pages: int) -> StepContext:
    """The step in memory of its own, with block tables of `num_pages`."""
    rows = _rows(step)
    tables = rows.block_tables.new_zeros(len(rows.block_tables), num_pages)
    tables[:, : rows.block_tables.shape[1]] = rows.block_tables
    own = Rows(tables, rows.seq_lens.clone(), rows.query_starts, rows.max_query_len)
    rotation, local = _own_rotation(step.rotation), None
    if step.local_rotation is not step.rotation:
        local = _own_rotation(step.local_rotation)
    batch = replace(step.batch, slots=step.batch.slots.clone(), decode=own)
    return replace(step, batch=batch, rotation=rotation, local_rotation=local or rotation)


def _own_rotation(rotation: Rotation) -> Rotation:
    return rotation[0].clone(), rotation[1].clone()


def _padding(num_rows: int) -> StepBatch:
    """A decode of rows that hold no sequence."""
    zeros = torch.zeros(num_rows, dtype=torch.int64)
    rows = Rows(torch.zeros(num_rows, 1, dtype=torch.int32), zeros.int(), max_query_len=1)
    return StepBatch(zeros, zeros, zeros - 1, decode=rows, prefill=None, sample_rows=None)


def _room_for(num_pages: int) -> int:
    """The next power of two: sequences grow, and few shapes serve them all."""
    return max(FEWEST_PAGES, 1 << (num_pages - 1).bit_length())
