"""The engines of a disaggregated run, each in a process of its own, and who tells them what to do."""

from __future__ import annotations

import os
import secrets
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

from kvtool.catalog.model import Model
from kvtool.engine.config import EngineConfig
from kvtool.engine.handover.frames import TOKEN_BYTES
from kvtool.engine.handover.instance import serve
from kvtool.engine.handover.messages import BOTH, DECODE, PREFILL, Arrived, Ask, Came, Lacks, Role, Served
from kvtool.engine.handover.options import Disaggregation
from kvtool.machine.ranks.layout import RankLayout
from kvtool.machine.threads import set_mask, usable_cpus
from kvtool.system.errors import DeviceError, KvtoolError, one_line

_SHARED_MEMORY = Path("/dev/shm")


@dataclass(slots=True)
class Member:
    """One engine's process. `load` counts its requests in flight."""

    role: Role
    process: Any
    pipe: Any
    load: int = 0


class Fleet:
    """Engines that serve requests together; `close` ends them. `pool_bytes` are those of all their pools."""

    def __init__(self, roles: Sequence[Role], folder: tempfile.TemporaryDirectory[str]) -> None:
        self._folder = folder
        context = get_context("spawn")
        self.members: list[Member] = []
        before = os.environ.get("OMP_PROC_BIND")
        os.environ["OMP_PROC_BIND"] = "false"  # threads of several engines would be bound to the same first cores
        try:
            for role in roles:
                ours, theirs = context.Pipe()
                process = context.Process(target=_live, args=(role, theirs))
                process.start()
                theirs.close()
                self.members.append(Member(role, process, ours))
        finally:
            if before is None:
                del os.environ["OMP_PROC_BIND"]
            else:
                os.environ["OMP_PROC_BIND"] = before
        try:
            self.pool_bytes = sum(self._heard(member) for member in self.members)
        except BaseException:
            self.close()
            raise

    def run(
        self, asks: Sequence[Ask], on_token: Callable[[int, int], None] = lambda request, token: None
    ) -> list[Served]:
        """Each request at its `arrival_s` from now on; `on_token` is told of a request and its new token. Raises
        DeviceError where an engine dies."""
        start_s = time.perf_counter()
        pending = deque(replace(ask, arrival_s=start_s + ask.arrival_s) for ask in asks)
        served = {ask.request: Served(ask) for ask in pending}
        places: dict[int, list[Member]] = {}
        open_requests = len(served)
        while open_requests:
            while pending and pending[0].arrival_s <= time.perf_counter():
                self._submit(pending.popleft(), places)
            wait_s = max(0.0, pending[0].arrival_s - time.perf_counter()) if pending else None
            for member in self._ready(wait_s):
                open_requests -= self._hear(member, served, places, on_token)
        return [served[ask.request] for ask in asks]

    def _of(self, kind: str) -> list[Member]:
        return [member for member in self.members if member.role.kind == kind]

    def _submit(self, ask: Ask, places: dict[int, list[Member]]) -> None:
        """To the engine of its kind with the fewest requests; where it will be decoded hears of it first."""
        if not self._of(DECODE):
            member = min(self._of(BOTH), key=lambda one: one.load)
            member.load += 1
            places[ask.request] = [member]
            member.pipe.send(ask)
            return
        chosen = [min(self._of(kind), key=lambda one: one.load) for kind in (PREFILL, DECODE)]
        for member in chosen:
            member.load += 1
        places[ask.request] = chosen
        chosen[1].pipe.send(ask)

    def _hear(
        self,
        member: Member,
        served: dict[int, Served],
        places: dict[int, list[Member]],
        on_token: Callable[[int, int], None],
    ) -> int:
        """What one engine says; how many requests are over by it."""
        told = self._heard(member)
        one = served[told.request]
        if isinstance(told, Lacks):
            one.spared_pages = told.first_page
            path = told.path if member.role.transfer == "shm" else told.path.with_name(f"{told.path.name}-sent")
            ask = replace(one.ask, first_page=told.first_page, path=path, address=told.address)
            places[told.request][0].pipe.send(ask)
            return 0
        if isinstance(told, Arrived):
            one.arrived_s = told.at_s
            return 0
        assert isinstance(told, Came)
        return self._came(member, told, one, places[told.request], on_token)

    def _came(
        self, member: Member, came: Came, one: Served, places: list[Member], on_token: Callable[[int, int], None]
    ) -> int:
        one.tokens += came.tokens
        one.times_s += came.times_s
        for token in came.tokens:
            on_token(came.request, token)
        if member.role.kind != DECODE:
            one.cached_tokens = max(one.cached_tokens, came.cached_tokens)
        if member.role.kind == PREFILL and not came.is_finished:
            one.sent = came
            member.load -= 1
            places[1].pipe.send(came)
            return 0
        if came.is_finished:
            for place in places if member.role.kind == PREFILL else [member]:
                place.load -= 1
        return int(came.is_finished)

    def _ready(self, wait_s: float | None) -> list[Member]:
        """Who has something to say. Raises DeviceError where one has died."""
        pipes = {member.pipe: member for member in self.members}
        ends = {member.process.sentinel: member for member in self.members}
        ready = connection.wait([*pipes, *ends], wait_s)
        heard = [pipes[one] for one in ready if one in pipes]
        dead = [ends[one] for one in ready if one in ends]
        if dead and not any(member.pipe.poll() for member in dead):
            raise DeviceError(self._epitaph(dead[0]))
        return heard

    def _heard(self, member: Member) -> Any:
        try:
            told = member.pipe.recv()
        except (EOFError, OSError):
            member.process.join(5)
            raise DeviceError(self._epitaph(member)) from None
        if isinstance(told, KvtoolError):
            raise told
        return told

    def _epitaph(self, member: Member) -> str:
        member.process.join(5)
        code = member.process.exitcode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"{member.role} died ({how}): the run is over"

    def close(self) -> None:
        for member in self.members:
            with suppress(OSError):
                member.pipe.send(None)
        for member in self.members:
            member.process.join(10)
            if member.process.is_alive():
                member.process.kill()
                member.process.join()
            member.pipe.close()
        self._folder.cleanup()


def _live(role: Role, pipe: Any) -> None:
    """The life of an engine's process."""
    from kvtool.engine.ranks.open import loaded_on

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the business of who started it
    set_mask(usable_cpus())
    try:
        layout = RankLayout(tp=role.tp)
        with loaded_on(
            layout, role.model, role.config, max_positions=role.max_positions, num_pages=role.num_pages
        ) as loaded:
            serve(loaded, role, pipe)
    except KvtoolError as error:
        with suppress(OSError):
            pipe.send(type(error)(one_line(f"{role}: {error}")))
    except OSError:  # who started it is gone
        return


def start_fleet(
    model: Model, config: EngineConfig, asked: Disaggregation | int, *, max_positions: int, num_pages: int
) -> Fleet:
    """The engines of a disaggregation, or so many that do both; each has a pool of `num_pages`. Raises KvtoolError or
    DeviceError."""
    from kvtool.engine.ranks.lead import ranked_config

    base = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() and os.access(_SHARED_MEMORY, os.W_OK) else None
    folder = tempfile.TemporaryDirectory(prefix="kvtool-pages-", dir=base)
    if isinstance(asked, int):
        kinds, options = [(BOTH, number, 1) for number in range(asked)], Disaggregation()
    else:
        options = asked
        kinds = [(PREFILL, number, asked.prefill_tp) for number in range(asked.prefill)]
        kinds += [(DECODE, number, asked.decode_tp) for number in range(asked.decode)]
    token = secrets.token_bytes(TOKEN_BYTES)
    processes = sum(tp for _, _, tp in kinds)
    own = ranked_config(config, RankLayout(tp=processes))  # each its share of the threads
    roles = [
        Role(
            kind=kind,
            number=number,
            tp=tp,
            model=model,
            config=own,
            max_positions=max_positions,
            num_pages=num_pages,
            folder=Path(folder.name),
            token=token,
            transfer=options.transfer,
            by_layer=options.by == "layer" and kind == PREFILL,
            listen=options.listen,
        )
        for kind, number, tp in kinds
    ]
    return Fleet(roles, folder)
