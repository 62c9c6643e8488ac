"""Whole engines in turns with ours: the same weights and prompts, greedy, every batch of a round given to each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace

from kvtool.bench.engines.checkpoint import Checkpoint, weights_folder
from kvtool.bench.engines.engine import Answers, RunningEngine, load_engine_peer
from kvtool.bench.harness import run_requests
from kvtool.bench.metrics import summary_ms
from kvtool.bench.peers import PeerError, one_line
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.machine.stats import Estimate, paired_ratio_of_medians
from kvtool.results import BenchPeer, PeerTurn
from kvtool.system.errors import KvtoolError
from kvtool.workloads import Request

CHECKED_TOKENS = 2  # of an answer: the prompt's own, and the first that a decode step made
SAME_SHARE = 0.5  # rounding turns one token of a few into another, which changes all behind it


@dataclass(frozen=True, slots=True)
class Entrant:
    """A peer that was asked for; `engine` is None where it could not start, and `note` says why."""

    name: str
    version: str | None = None
    engine: RunningEngine | None = None
    note: str = ""


@contextmanager
def entrants(loaded: LoadedModel, names: Sequence[str], *, max_tokens: int, max_batch: int) -> Iterator[list[Entrant]]:
    """These peers with our weights in them, stopped at the end. What fails is a note, no exception.

    They must hold `max_batch` sequences of `max_tokens`.
    """
    with ExitStack() as stack:
        if not names:
            yield []
            return
        try:
            checkpoint = Checkpoint(
                stack.enter_context(weights_folder(loaded)),
                loaded.device,
                loaded.dtype,
                max_tokens=max_tokens,
                max_batch=max_batch,
                token_bytes=sum(spec.stored_bytes(1) for spec in loaded.specs),
            )
        except (PeerError, KvtoolError, OSError) as error:
            yield [Entrant(name, note=str(error)) for name in names]
            return
        found = [_started(name, checkpoint) for name in names]
        for entrant in found:
            stack.callback(_stop, entrant)
        yield found


def _started(name: str, checkpoint: Checkpoint) -> Entrant:
    version = None
    try:
        peer = load_engine_peer(name)
        version = peer.version()
        engine = peer.start(checkpoint)
    except PeerError as refusal:
        return Entrant(name, version, note=str(refusal))
    except (Exception, SystemExit) as error:  # of somebody else's library, which may raise anything
        return Entrant(name, version, note=f"failed to start: {one_line(error)}")
    return Entrant(name, version, engine, engine.note)


def _stop(entrant: Entrant) -> None:
    if entrant.engine is not None:
        with suppress(Exception):  # what was measured stands
            entrant.engine.close()


@dataclass(frozen=True, slots=True)
class Round:
    """What one batch of prompts brought: ours, and each peer's that did not fail."""

    ours: Answers
    theirs: dict[str, Answers]


def compared(
    engine: Engine, peers: Sequence[Entrant], batches: Sequence[Sequence[Request]], *, warmup: int
) -> list[BenchPeer]:
    """Every peer next to `engine`, batch by batch, the first `warmup` of them not counted.

    Every second round goes backwards: a burst of the neighbours hits all alike, and nobody always comes first.
    """
    racing = list(peers)
    rounds = []
    for turn, requests in enumerate(batches):
        theirs: dict[str, Answers] = {}
        ours = _ours(engine, requests) if turn % 2 == 0 else None
        for index in range(len(racing)) if turn % 2 == 0 else reversed(range(len(racing))):
            racing[index] = _take_turn(racing[index], requests, theirs)
        rounds.append(Round(ours or _ours(engine, requests), theirs))
    return [_result(entrant, rounds[warmup:]) for entrant in racing]


def _take_turn(entrant: Entrant, requests: Sequence[Request], theirs: dict[str, Answers]) -> Entrant:
    """Adds its answers, if it has any. One that fails runs no more in this case."""
    if entrant.engine is None:
        return entrant
    try:
        theirs[entrant.name] = _answered(entrant.engine, requests)
    except PeerError as refusal:
        return replace(entrant, engine=None, note=str(refusal))
    except Exception as error:  # of somebody else's library
        return replace(entrant, engine=None, note=f"failed: {one_line(error)}")
    return entrant


def _answered(engine: RunningEngine, requests: Sequence[Request]) -> Answers:
    """Raises PeerError for answers of another length: their times would be of other work."""
    output_len = requests[0].output_len
    answers = engine.generate([request.prompt_ids for request in requests], output_len)
    found = [len(row) for row in answers.output_ids]
    if found != [output_len] * len(requests):
        raise PeerError(f"answered with {found} tokens, not with {output_len} for each of {len(requests)} prompts")
    return answers


def _ours(engine: Engine, requests: Sequence[Request]) -> Answers:
    done = run_requests(engine, requests)
    return Answers(
        first_s=max(sequence.ttft_s for sequence in done),
        last_s=max(sequence.e2e_s for sequence in done),
        output_ids=[sequence.output_ids for sequence in done],
    )


def _result(entrant: Entrant, rounds: Sequence[Round]) -> BenchPeer:
    result = BenchPeer(name=entrant.name, version=entrant.version, note=entrant.note)
    if entrant.engine is None:
        return result
    pairs = [(round_.ours, round_.theirs[entrant.name]) for round_ in rounds]
    same = same_tokens(pairs)
    if same < SAME_SHARE:
        note = f"different: {same:.0%} of its first {CHECKED_TOKENS} tokens are ours, so its times do not count"
        return BenchPeer(name=entrant.name, version=entrant.version, same_tokens=same, note=note)
    return _timed(result, same, [_turn(ours, peer) for ours, peer in pairs])


def same_tokens(pairs: Sequence[tuple[Answers, Answers]]) -> float:
    """Share of the first tokens of all answers that are ours. Later ones differ for good once rounding changed one."""
    agreed = [
        mine == other
        for ours, peer in pairs
        for row, theirs in zip(ours.output_ids, peer.output_ids, strict=True)
        for mine, other in zip(row[:CHECKED_TOKENS], theirs[:CHECKED_TOKENS], strict=True)
    ]
    return sum(agreed) / len(agreed)


def _turn(ours: Answers, peer: Answers) -> PeerTurn:
    return PeerTurn(ttft_s=peer.first_s, tpot_s=peer.tpot_s, ours_ttft_s=ours.first_s, ours_tpot_s=ours.tpot_s)


def _timed(result: BenchPeer, same: float, turns: list[PeerTurn]) -> BenchPeer:
    ttft = paired_ratio_of_medians([turn.ours_ttft_s for turn in turns], [turn.ttft_s for turn in turns])
    ours_tpot = [turn.ours_tpot_s for turn in turns if turn.ours_tpot_s is not None]
    theirs_tpot = [turn.tpot_s for turn in turns if turn.tpot_s is not None]
    tpot: Estimate | None = paired_ratio_of_medians(ours_tpot, theirs_tpot) if ours_tpot else None
    return BenchPeer(
        name=result.name,
        version=result.version,
        ttft_ms=summary_ms(turn.ttft_s for turn in turns),
        tpot_ms=summary_ms(theirs_tpot),
        ttft_ratio=ttft.value,
        ttft_ratio_ci_low=ttft.low,
        ttft_ratio_ci_high=ttft.high,
        tpot_ratio=tpot.value if tpot else None,
        tpot_ratio_ci_low=tpot.low if tpot else None,
        tpot_ratio_ci_high=tpot.high if tpot else None,
        same_tokens=same,
        note=result.note,
        turns=turns,
    )
