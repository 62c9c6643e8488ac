"""An engine that goes on from prompts which others computed, on the pages that they hand over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvtool.cache.manager import SequenceCache
from kvtool.engine.engine import Engine
from kvtool.engine.handover.messages import Arrived, Ask, Came, Lacks, Role
from kvtool.engine.handover.move import import_pages, whole_plan
from kvtool.engine.handover.staging import planned_bytes, staged
from kvtool.engine.handover.wire import Receiver
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.ranks.lead import RankedModel
from kvtool.engine.sequence import Sequence
from kvtool.units import ceil_div


@dataclass(slots=True)
class Coming:
    """A request whose pages are on their way: `first` is its first token and when that came out."""

    ask: Ask
    path: Path
    first_page: int
    first: tuple[int, float] | None = None
    is_whole: bool = False


@dataclass(slots=True)
class Handed:
    """What `back` puts into the pages of a sequence that is seated."""

    path: Path
    first_page: int
    prompt_tokens: int


class Decoder:
    """Goes on from prompts that others computed. Is the swap of its scheduler: a sequence that is seated for the first
    time gets the pages that came for it; where some that were spared have gone meanwhile, it is computed anew."""

    def __init__(self, engine: Engine, loaded: LoadedModel, role: Role, pipe: Any) -> None:
        self.engine, self.loaded, self.role, self.pipe = engine, loaded, role, pipe
        self.receiver = Receiver(role.listen, role.token)
        self.wakes = (self.receiver.wake,)
        self.coming: dict[int, Coming] = {}
        self.running: dict[int, int] = {}
        self.handed: dict[int, Handed] = {}
        engine.scheduler.swap = self

    def take(self, told: Ask | Came) -> None:
        """A request to expect pages for, or its first token."""
        if isinstance(told, Ask):
            self._expect(told)
            return
        coming = self.coming[told.request]
        coming.first = (told.tokens[0], told.times_s[0])
        self._start_if_whole(told.request)

    def _expect(self, ask: Ask) -> None:
        size = self.engine.cache.block_size
        first_page = len(self.engine.cache.index.match(ask.prompt[:-1]))
        pages = ceil_div(len(ask.prompt), size) - first_page
        # Over TCP the sender stages in a file of its own, as it would on another machine.
        path = self.role.folder / f"to-{self.role.number}-{ask.request}"
        memory = staged(path, planned_bytes(whole_plan(self.loaded, pages)))
        self.receiver.expect(ask.request, memory)
        self.coming[ask.request] = Coming(ask, path, first_page)
        self.pipe.send(Lacks(request=ask.request, first_page=first_page, path=path, address=self.receiver.address))

    def look(self) -> None:
        """What has arrived."""
        for request, at_s in self.receiver.arrived():
            self.coming[request].is_whole = True
            self.pipe.send(Arrived(request=request, at_s=at_s))
            self._start_if_whole(request)

    def _start_if_whole(self, request: int) -> None:
        coming = self.coming[request]
        if not coming.is_whole or coming.first is None:
            return
        del self.coming[request]
        ask = coming.ask
        sequence = self.engine.add(ask.prompt, ask.params, arrival_s=ask.arrival_s)
        sequence.token_ids.append(coming.first[0])
        sequence.token_times_s.append(coming.first[1])
        self.running[sequence.id] = request
        self.handed[sequence.id] = Handed(coming.path, coming.first_page, len(ask.prompt))

    def out(self, sequence: Sequence) -> None:
        """One that gives way is computed anew."""

    def back(self, sequence: Sequence, pages: SequenceCache) -> int:
        """Tokens that are there: those of the prompt, where its pages came."""
        handed = self.handed.pop(sequence.id, None)
        if handed is None:
            return pages.cached_tokens
        size = self.engine.cache.block_size
        there = pages.cached_tokens // size
        try:
            if there < handed.first_page:
                return pages.cached_tokens
            page_ids = pages.table.pages[there : ceil_div(handed.prompt_tokens, size)]
            self._import(page_ids, handed.path, skip=there - handed.first_page)
        finally:
            handed.path.unlink(missing_ok=True)
        return handed.prompt_tokens

    def _import(self, page_ids: list[int], path: Path, skip: int) -> None:
        if not page_ids:
            return
        if isinstance(self.loaded, RankedModel):
            self.loaded.move_pages(self.engine.pool, page_ids, path, out=False, skip=skip)
        else:
            import_pages(self.loaded, self.engine.pool, page_ids, path, 0, skip)

    def stepped(self, sequences: list[Sequence]) -> None:
        """Tell every token that came."""
        for sequence in sequences:
            request = self.running[sequence.id]
            self.pipe.send(
                Came(
                    request=request,
                    tokens=sequence.token_ids[-1:],
                    times_s=sequence.token_times_s[-1:],
                    is_finished=sequence.is_finished,
                )
            )
            if sequence.is_finished:
                del self.running[sequence.id]
