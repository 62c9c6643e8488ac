"""An engine in a process of its own: it prefills for others, decodes what others prefilled, or does both."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvtool.cache.manager import SequenceCache
from kvtool.catalog.model import Model
from kvtool.engine.config import EngineConfig
from kvtool.engine.engine import Engine
from kvtool.engine.handover.move import export_pages, heads_of, import_pages, whole_plan
from kvtool.engine.handover.staging import export_layer, layer_span, planned_bytes, staged
from kvtool.engine.handover.wire import Address, Part, Receiver, Sender
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.ranks.lead import RankedModel
from kvtool.engine.scheduler import Work
from kvtool.engine.sequence import SamplingParams, Sequence
from kvtool.units import ceil_div

PREFILL, DECODE, BOTH = "prefill", "decode", "both"


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What an instance is told when it starts. Staged pages lie in `folder`, and `token` is what peers know each other
    by. `by_layer`: a layer goes over while the next one is computed."""

    kind: str
    number: int
    tp: int
    model: Model
    config: EngineConfig
    max_positions: int
    num_pages: int
    folder: Path
    token: bytes
    transfer: str
    by_layer: bool
    listen: str

    def __str__(self) -> str:
        kind = "engine" if self.kind == BOTH else f"{self.kind} engine"
        return f"{kind} {self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request. `first_page`: the pages before it are there already where it goes, at `address`."""

    request: int
    prompt: list[int]
    params: SamplingParams
    arrival_s: float
    first_page: int = 0
    path: Path | None = None
    address: Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lacks:
    """Where a decode engine takes a request's pages, and from which on it has none of them."""

    request: int
    first_page: int
    path: Path
    address: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Came:
    """Tokens of a request, and when; `at_s` and what follows tell of a hand-over that begins with them."""

    request: int
    tokens: list[int]
    times_s: list[float]
    is_finished: bool
    cached_tokens: int = 0
    export_start_s: float | None = None
    pages: int = 0
    bytes: int = 0
    descriptors: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """All pages of a request are there."""

    request: int
    at_s: float


@dataclass(slots=True)
class Leaving:
    """A prompt that is prefilled for another engine."""

    ask: Ask
    sequence: Sequence
    start_s: float | None = None
    done_layers: int = 0
    memory: Tensor | None = None


class PrefillEngine(Engine):
    """An engine that knows which prompts the step at hand completes."""

    completing: list[Sequence] = []  # noqa: RUF012  # replaced, never changed

    def run(self, work: list[Work]) -> list[int]:
        self.completing = [item.sequence for item in work if item.completes]
        return super().run(work)


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
            came = {"tokens": sequence.output_ids, "times_s": list(sequence.token_times_s)}
            cached = sequence.cached_tokens or 0
            if sequence.is_finished:
                self.pipe.send(
                    Came(request=leaving.ask.request, **came, is_finished=True, cached_tokens=cached)  # type: ignore[arg-type]
                )
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


class Aggregated:
    """Prefills and decodes in the same steps, as one engine does."""

    wakes: tuple[Any, ...] = ()

    def __init__(self, engine: Engine, loaded: LoadedModel, role: Role, pipe: Any) -> None:
        self.engine, self.pipe = engine, pipe
        self.running: dict[int, int] = {}

    def take(self, ask: Ask) -> None:
        sequence = self.engine.add(ask.prompt, ask.params, arrival_s=ask.arrival_s)
        self.running[sequence.id] = ask.request

    def look(self) -> None:
        """Nothing comes to it but requests."""

    def stepped(self, sequences: list[Sequence]) -> None:
        """Tell every token that came."""
        for sequence in sequences:
            self.pipe.send(
                Came(
                    request=self.running[sequence.id],
                    tokens=sequence.token_ids[-1:],
                    times_s=sequence.token_times_s[-1:],
                    is_finished=sequence.is_finished,
                    cached_tokens=sequence.cached_tokens or 0,
                )
            )


KINDS: dict[str, Any] = {PREFILL: Prefiller, DECODE: Decoder, BOTH: Aggregated}


def serve(loaded: LoadedModel, role: Role, pipe: Any) -> None:
    """Take requests and step, until the pipe says None or is closed."""
    kind = PrefillEngine if role.kind == PREFILL else Engine
    engine = kind(loaded, num_pages=role.num_pages, config=loaded.config)
    instance = KINDS[role.kind](engine, loaded, role, pipe)
    pipe.send(engine.pool.bytes)  # ready
    while True:
        if engine.scheduler.is_idle:
            connection.wait([pipe, *instance.wakes])
        while pipe.poll():
            try:
                told = pipe.recv()
            except EOFError:
                return
            if told is None:
                return
            instance.take(told)
        instance.look()
        if not engine.scheduler.is_idle:
            instance.stepped(engine.step())


@dataclass(slots=True)
class Served:
    """A request and what became of it, on one clock of the machine."""

    ask: Ask
    tokens: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    cached_tokens: int = 0
    spared_pages: int = 0
    sent: Came | None = None
    arrived_s: float | None = None
