"""A server measured: found, probed, driven case by case, and written down; what was done before Ctrl-C is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from kvtool.bench.definitions import DEFINITIONS
from kvtool.bench.engines.server.beside import Own, run_own
from kvtool.bench.engines.server.case import Ran, are_hits_exact, case_of
from kvtool.bench.engines.server.drive import Driven, Driver
from kvtool.bench.engines.server.hits import Counter, hits_of
from kvtool.bench.engines.server.options import ServerOptions
from kvtool.bench.engines.server.overhead import client_overhead_ms
from kvtool.bench.engines.server.words import notes_of, said_of, said_of_own
from kvtool.bench.session import Outcome, Progress
from kvtool.catalog.model import Model
from kvtool.engine.config import EngineConfig
from kvtool.engine.endpoint.client import Client
from kvtool.engine.endpoint.faults import EndpointError
from kvtool.engine.endpoint.prometheus import Counted
from kvtool.engine.endpoint.server import Server, reset_cache
from kvtool.engine.endpoint.wire import Asking, Wire
from kvtool.machine.environment import describe_client
from kvtool.results import BenchDocument, EndpointCase
from kvtool.system.errors import DeviceError

PROBE_LEN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The server, the model that it runs, and how it is asked. `own`: how kvtool's own engine runs beside it."""

    client: Client
    server: Server
    model: Model
    wire: Wire
    own: EngineConfig | None = None


def measure_server(
    target: Target,
    options: ServerOptions,
    *,
    progress: Progress,
    overhead: Callable[[], float | None] = client_overhead_ms,
) -> Outcome[BenchDocument]:
    """Every case. Raises KvtoolError for prompts that cannot be made, EndpointError for a server that answers none."""
    plans = {case: options.plan(case, target.server, target.wire.vocab_size, 0) for case in options.grid}
    overhead_ms = overhead()
    driver = probe(target)
    cases: list[EndpointCase] = []
    remarks: list[str] = []
    lost: EndpointError | None = None
    interrupted = False
    for number, case in enumerate(plans):
        progress(f"{number + 1} of {len(plans)}: {options.case_name(case)}", number / len(plans))
        try:
            ran, lost, interrupted = _ran(target, options, driver, case)
        except KeyboardInterrupt:
            interrupted = True
            break
        own, stopped = _own(target, ran, options) if not interrupted else (None, True)
        interrupted = interrupted or stopped
        if any(run.exchanged for run in ran.runs):
            cases.append(case_of(ran, target.model, target.server, options, own, overhead_ms))
            remarks += [ran.hits.remark] if ran.hits.remark else []
        if lost is not None or interrupted:
            break
    if interrupted and not cases:
        raise KeyboardInterrupt
    if lost is not None and not cases:
        raise lost
    document = BenchDocument(
        environment=describe_client(),
        definitions=DEFINITIONS,
        assumptions=[
            *said_of(target.server, options, driver.asking),
            *([said_of_own(target.own)] if target.own is not None else []),
            *dict.fromkeys(remarks),
            *notes_of(cases),
        ],
        cases=list(cases),
    )
    return Outcome(document=document, interrupted=interrupted, errors=_errors(cases, lost))


def probe(target: Target) -> Driver:
    """How the server wants to be asked: without what pins the length where it refuses that. Raises EndpointError where
    it answers neither way."""
    asking = Asking(model=target.server.model, ids_back=target.server.engine == "vllm")
    prompt = target.wire.start(range(PROBE_LEN))
    first: EndpointError | None = None
    for pinned in (True, False):
        driver = Driver(
            client=target.client,
            wire=target.wire,
            asking=replace(asking, pinned=pinned, ids_back=pinned and asking.ids_back),
        )
        fault = driver.ask(prompt, 2).fault
        if fault is None:
            return driver
        first = first or fault
        if fault.kind not in ("status 400", "status 422"):
            break
    assert first is not None
    raise first


def _ran(
    target: Target, options: ServerOptions, driver: Driver, case: tuple[str, int, float | None]
) -> tuple[Ran, EndpointError | None, bool]:
    """The iterations of a case behind its warm-up, the fault that ended them early, and whether Ctrl-C did."""
    counter = Counter(target.client, target.server)
    runs: list[Driven] = []
    counts: list[Counted | None] = []
    lost: EndpointError | None = None
    interrupted = False
    warmup = options.num_iters_warmup
    first = options.plan(case, target.server, target.wire.vocab_size, warmup)
    for draw in range(warmup + options.num_iters):
        plan = options.plan(case, target.server, target.wire.vocab_size, draw)
        try:
            if options.reset_cache:
                reset_cache(target.client, target.server)
            driver.prime(plan.priming)
        except EndpointError as fault:
            lost = fault
            break
        counter.begin()
        timed = any(turn.arrival_s for turn in plan.turns)
        run = driver.drive(plan, concurrency=options.concurrency, by_clock=timed)
        lost, interrupted = run.lost, run.interrupted
        if draw >= warmup or lost is not None:
            runs.append(run)
            counts.append(None if lost or interrupted else counter.end(_prompt_tokens(run)))
        if lost is not None or interrupted:
            break
    hits = hits_of(runs, counts)
    ran = Ran(case=case, plan=first, runs=runs, hits=hits)
    exact = are_hits_exact(ran, target.server, options) and hits.source != "none"
    warm = exact and hits.tokens > ran.expected_tokens
    return replace(ran, warm=warm), lost, interrupted


def _prompt_tokens(run: Driven) -> int:
    return sum(one.answer.prompt_tokens for one in run.whole)


def _own(target: Target, ran: Ran, options: ServerOptions) -> tuple[Own | None, bool]:
    """Our own engine under the same token ids, where it is asked for and can run; and whether Ctrl-C came."""
    if target.own is None:
        return None, False
    try:
        return run_own(target.model, target.own, ran.plan, options), False
    except DeviceError:
        return None, False
    except KeyboardInterrupt:
        return None, True


def _errors(cases: list[EndpointCase], lost: EndpointError | None) -> list[str]:
    """What makes the run a failed one: a case without an answer, or an end before its time."""
    errors = [
        f"{case.name}: no request was answered: {case.endpoint.failures[0].text}"
        for case in cases
        if not case.samples and case.endpoint.failures
    ]
    return errors if errors or lost is None else [f"the run ended early: {lost}"]
