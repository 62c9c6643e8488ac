"""A whole decode step as a function of device memory: it reads its rows there, and leaves them ready for the next.

Nothing that varies is an argument, so a CUDA graph of it stays right, and steps follow each other without the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvtool.engine.batch import StepBatch
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.pool import KvPool
from kvtool.engine.sampler import Draw, next_tokens
from kvtool.kernels.interface import Kernels
from kvtool.kernels.rows import Rows
from kvtool.units import ceil_div

PADDING = -1


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """R rows on the device, one for each sequence that decodes. Their addresses never change.

    - token_ids [R] int64: the token to compute.
    - positions [R] int64: where it stands in its sequence; PADDING where the row holds no sequence.
    - block_tables [R, N] int32: as wide as the longest sequence needs, so that every length splits attention alike.
    - temperatures, top_ps [R]: how the next token is drawn.

    A padding row takes no page. Its slot is -1 and its length 0, so kernels write nothing for it and attend to nothing,
    and its other columns may hold anything.
    """

    token_ids: Tensor
    positions: Tensor
    block_tables: Tensor
    temperatures: Tensor
    top_ps: Tensor
    query_starts: Tensor  # [R + 1], 0, 1, 2, ...: one query a row

    def first(self, num_rows: int) -> DecodeRows:
        """The first rows, in place."""
        return DecodeRows(
            token_ids=self.token_ids[:num_rows],
            positions=self.positions[:num_rows],
            block_tables=self.block_tables[:num_rows],
            temperatures=self.temperatures[:num_rows],
            top_ps=self.top_ps[:num_rows],
            query_starts=self.query_starts[: num_rows + 1],
        )

    def next_batch(self, block_size: int, kernels: Kernels) -> StepBatch:
        """The step that these rows are at; then they stand at the position behind it."""
        positions, slots, seq_lens = kernels.place(self.positions, self.block_tables, block_size)
        rows = Rows(
            block_tables=self.block_tables,
            seq_lens=seq_lens,
            query_starts=self.query_starts,
            max_query_len=1,
        )
        return StepBatch(
            token_ids=self.token_ids, positions=positions, slots=slots, decode=rows, prefill=None, sample_rows=None
        )


def decode_rows(num_rows: int, max_tokens: int, block_size: int, device: torch.device) -> DecodeRows:
    """Padding alone, for sequences of up to `max_tokens`."""
    return DecodeRows(
        token_ids=torch.zeros(num_rows, dtype=torch.int64, device=device),
        positions=torch.full((num_rows,), PADDING, device=device),
        block_tables=torch.zeros(num_rows, ceil_div(max_tokens, block_size), dtype=torch.int32, device=device),
        temperatures=torch.zeros(num_rows, device=device),
        top_ps=torch.ones(num_rows, device=device),
        query_starts=torch.arange(num_rows + 1, dtype=torch.int32, device=device),
    )


@torch.inference_mode()
def decode_step(
    loaded: LoadedModel, pool: KvPool, rows: DecodeRows, draw: Draw, generator: torch.Generator, logits: Tensor | None
) -> None:
    """Embedding, layers, logits, sampling and the move to the next position. `logits` [R, vocab] takes the logits;
    without it greedy rows have no need of them."""
    batch = rows.next_batch(pool.block_size, loaded.kernels)
    if draw is Draw.GREEDY and logits is None:
        rows.token_ids.copy_(loaded.transformer.likeliest(batch, pool.layers, loaded.kernels))
        return
    found = loaded.transformer(batch, pool.layers, loaded.kernels)
    if logits is not None:
        logits.copy_(found)
    rows.token_ids.copy_(next_tokens(found, draw, rows.temperatures, rows.top_ps, generator, loaded.kernels))
