"""The tensors of one step: flat tokens, decode rows first, then the prefill rows sequence after sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from kvtool.engine.scheduler import Work
from kvtool.kernels.rows import Rows
from kvtool.units import ceil_div


@dataclass(frozen=True, slots=True)
class StepBatch:
    """token_ids, positions and slots [T] int64: tokens of the `decode` rows first, one each, then those of `prefill`.

    `sample_rows` [n] are the tokens whose logits give a next token, None stands for all of them. `prefill_pages` are
    the pages that hold tokens of each prefill row once the step is done, on the host.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    decode: Rows | None
    prefill: Rows | None
    sample_rows: Tensor | None
    prefill_pages: tuple[list[int], ...] = ()

    @property
    def num_decodes(self) -> int:
        """Tokens of decode rows."""
        if self.decode is None:
            return 0
        return len(self.token_ids) if self.prefill is None else len(self.decode.seq_lens)


def build_batch(work: list[Work], device: torch.device) -> StepBatch:
    """The step's tensors on `device`. `work` has its decodes first, as the scheduler gives it."""
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    sample_rows: list[int] = []
    for item in work:
        sequence = item.sequence
        assert sequence.pages is not None
        start, stop = sequence.num_computed, sequence.num_computed + item.num_tokens
        token_ids += sequence.token_ids[start:stop]
        positions += range(start, stop)
        slots += sequence.pages.table.slots(start, stop)
        if item.completes:
            sample_rows.append(len(token_ids) - 1)
    decodes = [item for item in work if item.is_decode]
    prefills = work[len(decodes) :]
    return StepBatch(
        token_ids=to_device(device, token_ids, torch.int64),
        positions=to_device(device, positions, torch.int64),
        slots=to_device(device, slots, torch.int64),
        decode=_rows(decodes, device),
        prefill=_rows(prefills, device),
        sample_rows=None if len(sample_rows) == len(token_ids) else to_device(device, sample_rows, torch.int64),
        prefill_pages=tuple(_used(item) for item in prefills),
    )


def _rows(work: list[Work], device: torch.device) -> Rows | None:
    if not work:
        return None
    tables = [item.sequence.pages.table.pages for item in work if item.sequence.pages is not None]
    width = max(len(table) for table in tables)
    starts = None  # a decode does without
    if not work[0].is_decode:
        starts = to_device(device, [0, *accumulate(item.num_tokens for item in work)], torch.int32)
    return Rows(
        block_tables=to_device(device, [table + [0] * (width - len(table)) for table in tables], torch.int32),
        seq_lens=to_device(device, [item.sequence.num_computed + item.num_tokens for item in work], torch.int32),
        query_starts=starts,
        max_query_len=max(item.num_tokens for item in work),
    )


def _used(item: Work) -> list[int]:
    """The pages that hold tokens once the step is done."""
    assert item.sequence.pages is not None
    table = item.sequence.pages.table
    return table.pages[: ceil_div(item.sequence.num_computed + item.num_tokens, table.block_size)]


def sequence_batch(token_ids: Sequence[int], start: int, stop: int, block_size: int, device: torch.device) -> StepBatch:
    """Tokens start .. stop-1 of one sequence, which lies in the first pages in order; every token gives logits."""
    stop = min(stop, len(token_ids))
    return StepBatch(
        token_ids=torch.tensor(token_ids[start:stop], device=device),
        positions=torch.arange(start, stop, device=device),
        slots=torch.arange(start, stop, device=device),
        decode=None,
        prefill=sequence_rows(start, stop, block_size, device),
        sample_rows=None,
        prefill_pages=(list(range(ceil_div(stop, block_size))),),
    )


def sequence_rows(start: int, stop: int, block_size: int, device: torch.device) -> Rows:
    """The queries of tokens start .. stop-1 of a sequence in the first pages in order."""
    return Rows(
        block_tables=torch.arange(ceil_div(stop, block_size), dtype=torch.int32, device=device).unsqueeze(0),
        seq_lens=torch.tensor([stop], dtype=torch.int32, device=device),
        query_starts=torch.tensor([0, stop - start], dtype=torch.int32, device=device),
        max_query_len=stop - start,
    )


def to_device(device: torch.device, values: Sequence[float] | Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
    """The values as a tensor on `device`, which the host does not wait for: pinned memory is reused once it is read."""
    return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)
