"""An engine in a process of its own: it prefills for others, decodes what others prefilled, or does both."""

from __future__ import annotations

from multiprocessing import connection
from typing import Any

from kvtool.engine.engine import Engine
from kvtool.engine.handover.decoder import Decoder
from kvtool.engine.handover.messages import BOTH, DECODE, PREFILL, Ask, Came, Role
from kvtool.engine.handover.prefiller import PrefillEngine, Prefiller
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.sequence import Sequence


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
