"""An engine that prefills for others, and sends the pages of each prompt to where it is decoded."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvtool.engine.engine import Engine
from kvtool.engine.graphs.pipeline import DecodePipeline
from kvtool.engine.handover.messages import Ask, Came, Role
from kvtool.engine.handover.move import export_pages, heads_of, whole_plan
from kvtool.engine.handover.staging import export_layer, layer_span, planned_bytes, staged
from kvtool.engine.handover.wire import Part, Sender
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.ranks.lead import RankedModel
from kvtool.engine.scheduler import Work
from kvtool.engine.sequence import Sequence
from kvtool.units import ceil_div


@dataclass(slots=True)
class Leaving:
    """A prompt that is prefilled for another engine."""

    ask: Ask
    sequence: Sequence
    start_s: float | None = None
    done_layers: int = 0
    memory: Tensor | None = None


class PrefillEngine(Engine):
    """An engine that knows which prompts the step at hand completes, and decodes none of them."""

    completing: list[Sequence] = []  # noqa: RUF012  # replaced, never changed

    def run(self, work: list[Work], *, wait: Callable[[int], None] | None = None) -> list[int]:
        self.completing = [item.sequence for item in work if item.completes]
        return super().run(work, wait=wait)

    def _step_ahead(self, pipeline: DecodePipeline) -> list[Sequence]:
        """No step is certain to follow: whose prompt is computed leaves."""
        return self._run_now(self.schedule())


class Prefiller:
    """Computes prompts, and sends their pages to where they are decoded."""

    def __init__(self, engine: PrefillEngine, loaded: LoadedModel, role: Role, pipe: Any) -> None:
        self.engine, self.loaded, self.role, self.pipe = engine, loaded, role, pipe
        self.sender = Sender(role.token)
        self.leaving: dict[int, Leaving] = {}
        if role.by_layer:
            loaded.transformer.after_layer = self._layer_done

    wakes: tuple[Any, ...] = ()

    def take(self, ask: Ask) -> None:
        sequence = self.engine.add(ask.prompt, ask.params, arrival_s=ask.arrival_s)
        self.leaving[sequence.id] = Leaving(ask, sequence)

    def look(self) -> None:
        """Nothing comes to it but requests."""

    def stepped(self, sequences: list[Sequence]) -> None:
        """Those with a first token go."""
        for sequence in sequences:
            leaving = self.leaving.pop(sequence.id)
            came: dict[str, Any] = {"tokens": sequence.output_ids, "times_s": list(sequence.token_times_s)}
            cached = sequence.cached_tokens or 0
            if sequence.is_finished:
                self.pipe.send(Came(request=leaving.ask.request, **came, is_finished=True, cached_tokens=cached))
                continue
            self.pipe.send(self._hand_over(leaving, came, cached))
            self.engine.scheduler.finish(sequence)

    def _hand_over(self, leaving: Leaving, came: dict[str, Any], cached: int) -> Came:
        ask, page_ids = leaving.ask, self._page_ids(leaving)
        assert ask.path is not None
        assert ask.address is not None
        pieces = whole_plan(self.loaded, len(page_ids))
        count, layers = planned_bytes(pieces), len(pieces)
        if page_ids and not leaving.done_layers:
            leaving.start_s = time.perf_counter()
            self._export(page_ids, ask.path)
            if self.role.transfer == "tcp":
                self.sender.send(Part(ask.address, ask.request, self._staged(ask.path, count), 0, count))
        self.sender.send(Part(ask.address, ask.request))
        return Came(
            request=ask.request,
            **came,
            is_finished=False,
            cached_tokens=cached,
            export_start_s=leaving.start_s,
            pages=len(page_ids),
            bytes=count,
            descriptors=layers if leaving.done_layers else int(bool(page_ids)),
        )

    def _page_ids(self, leaving: Leaving) -> list[int]:
        sequence = leaving.sequence
        assert sequence.pages is not None
        used = ceil_div(sequence.prompt_tokens, self.engine.cache.block_size)
        return sequence.pages.table.pages[leaving.ask.first_page : used]

    def _export(self, page_ids: list[int], path: Path) -> None:
        if isinstance(self.loaded, RankedModel):
            self.loaded.move_pages(self.engine.pool, page_ids, path, out=True)
        else:
            export_pages(self.loaded, self.engine.pool, page_ids, path, 0)

    def _layer_done(self, layer: int) -> None:
        """Of every prompt that this step completes the layer goes, while the next one is computed."""
        for sequence in self.engine.completing:
            leaving = self.leaving[sequence.id]
            page_ids = self._page_ids(leaving)
            if not page_ids:
                continue
            ask = leaving.ask
            assert ask.path is not None
            assert ask.address is not None
            if leaving.start_s is None:
                leaving.start_s = time.perf_counter()
            pieces = whole_plan(self.loaded, len(page_ids))
            if leaving.memory is None:
                leaving.memory = self._staged(ask.path, planned_bytes(pieces))
            pages, ids = self.engine.pool.layers[layer], self._ids(page_ids)
            export_layer(pages, ids, pieces[layer], leaving.memory, heads_of(self.loaded, layer, 0))
            leaving.done_layers += 1
            if self.role.transfer == "tcp":
                self.sender.send(Part(ask.address, ask.request, leaving.memory, *layer_span(pieces[layer])))

    def _staged(self, path: Path, count: int) -> Tensor:
        """Where pages are copied to. Nobody else opens what goes over TCP from here on, so that its name can go."""
        memory = staged(path, count)
        if self.role.transfer == "tcp":
            path.unlink()
        return memory

    def _ids(self, page_ids: list[int]) -> Tensor:
        return torch.tensor(page_ids, dtype=torch.int64, device=self.loaded.device)
