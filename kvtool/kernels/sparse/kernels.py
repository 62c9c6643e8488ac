"""What a decoder step calls where attention reads a part of the cache: other kernels, told which pages to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from kvtool.kernels.interface import Kernels
from kvtool.kernels.pages import Pages
from kvtool.kernels.rows import Rows, Softmax
from kvtool.kernels.sparse.quest import QuestPages, quest_decode, quest_prefill
from kvtool.kernels.sparse.streaming import StreamingPages, streamed, streaming_prefill, turn_sinks

if TYPE_CHECKING:
    from kvtool.kernels.interface import Rotation


@dataclass(frozen=True, slots=True, eq=False)
class SparseKernels:
    """Other kernels, which also take sparse pages: those of each layer say whether they are. `frequencies` fp32 [E/2]
    are those of rotary positions. Quest's queries read everything in a prefill, as the paper has it, unless it is
    `as_decoded`."""

    base: Kernels
    frequencies: Tensor
    as_decoded: bool = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def store(self, k: Tensor, v: Tensor | None, pages: Pages, slots: Tensor) -> None:
        self.base.store(k, v, pages, slots)
        if isinstance(pages, QuestPages):
            pages.note(slots)

    def split_qkv(
        self, qkv: Tensor, norms: Tensor | None, eps: float, rotation: Rotation | None, pages: Pages, slots: Tensor
    ) -> Tensor:
        q = self.base.split_qkv(qkv, norms, eps, rotation, pages, slots)
        if isinstance(pages, QuestPages):
            pages.note(slots)
        return q

    def decode(self, q: Tensor, pages: Pages, rows: Rows, softmax: Softmax) -> Tensor:
        if len(q) > len(rows.seq_lens):
            return self.prefill(q, pages, rows.with_starts(len(q)), softmax)
        if isinstance(pages, QuestPages):
            return quest_decode(q, pages, rows, softmax, self.base)
        if not isinstance(pages, StreamingPages):
            return self.base.decode(q, pages, rows, softmax)
        near = rows.once(("streamed", pages.window_pages, pages.block_size), lambda: streamed(rows, pages))
        if len(near.source):
            turn_sinks(pages, near, self.frequencies)
        return self.base.decode(q, pages, near.rows, softmax)

    def prefill(self, q: Tensor, pages: Pages, rows: Rows, softmax: Softmax) -> Tensor:
        if isinstance(pages, StreamingPages):
            return streaming_prefill(q, pages, rows, softmax, self.frequencies)
        if isinstance(pages, QuestPages) and self.as_decoded:
            return quest_prefill(q, pages, rows, softmax)
        return self.base.prefill(q, pages, rows, softmax)


def sparse(base: Kernels, frequencies: Tensor, *, as_decoded: bool = False) -> Kernels:
    """The kernels that also take sparse pages."""
    return cast("Kernels", SparseKernels(base, frequencies, as_decoded))
