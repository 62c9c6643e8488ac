"""Other engines in turns with ours: who goes first, what is compared, and what a failing one leaves behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from kvtool.bench import bench as run
from kvtool.bench import session
from kvtool.bench.engines import race as engine_peers
from kvtool.bench.engines.engine import ENGINE_PEERS, Answers
from kvtool.bench.engines.race import Entrant, compared, entrants, same_tokens
from kvtool.bench.options import BenchOptions
from kvtool.bench.peers import PeerError
from kvtool.catalog.decoder import Decoder
from kvtool.results import BenchDocument, encode
from kvtool.system.errors import KvtoolError
from kvtool.workloads import Request
from tests.bench.test_bench import FAST, PREFIX, latency_only
from tests.bench.tiny_model import TINY, config, loaded

OPTIONS = latency_only(input_lens=(20,), batch_sizes=(2,))
SIZES = {"max_tokens": 25, "max_batch": 2}
PROMPTS = [Request(prompt_ids=(1, 2, 3), output_len=3), Request(prompt_ids=(4, 5, 6), output_len=3)]
SAID = [[7, 8, 9], [1, 2, 3]]


class Scripted:
    """Takes turns from a list: answers, or an error to raise."""

    note = "scripted"

    def __init__(self, name: str, log: list[str], turns: Sequence[Answers | Exception]) -> None:
        self.name, self.log, self.turns = name, log, iter(turns)
        self.closed = False

    def generate(self, prompts: Sequence[Sequence[int]], output_len: int) -> Answers:
        assert len(prompts) == 2
        self.log.append(self.name)
        turn = next(self.turns)
        if isinstance(turn, Exception):
            raise turn
        return turn

    def close(self) -> None:
        self.closed = True


def answers(first_s: float, last_s: float, said: list[list[int]] = SAID) -> Answers:
    return Answers(first_s=first_s, last_s=last_s, output_ids=said)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Our engine is scripted too: 1 s to the first token, 1 s for each of two more."""
    turns: list[str] = []

    def ours(engine: object, requests: Sequence[Request]) -> Answers:
        turns.append("ours")
        return answers(1.0, 3.0, [row[: request.output_len] for row, request in zip(SAID, requests, strict=True)])

    monkeypatch.setattr(engine_peers, "_ours", ours)
    return turns


def race(entrants: list[Entrant], prompts: list[Request] = PROMPTS):
    return compared(SimpleNamespace(), entrants, [prompts] * 3, warmup=1)


def test_rounds_go_back_and_forth_and_the_warm_up_is_not_counted(log: list[str]) -> None:
    slow_at_first = [answers(90.0, 900.0), answers(2.0, 3.0), answers(2.0, 3.0)]
    first, second = race(
        [
            Entrant("a", "1.0", Scripted("a", log, slow_at_first), "told"),
            Entrant("b", "2.0", Scripted("b", log, [answers(4.0, 12.0)] * 3)),
        ]
    )
    assert log == ["ours", "a", "b", "b", "a", "ours", "ours", "a", "b"]
    assert (first.ttft_ratio, first.tpot_ratio, first.same_tokens) == (2.0, 0.5, 1.0)
    assert (second.ttft_ratio, second.tpot_ratio) == (4.0, 4.0)
    assert first.ttft_ms is not None
    assert (first.ttft_ms.p50, first.ttft_ms.n) == (2000.0, 2)
    assert [(turn.ours_ttft_s, turn.ours_tpot_s) for turn in first.turns] == [(1.0, 1.0)] * 2
    assert (first.version, first.note) == ("1.0", "told")


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (PeerError("gave up"), "gave up"),
        (answers(0.1, 0.2, [[7], [1, 2, 3]]), "answered with [1, 3] tokens, not with 3 for each of 2 prompts"),
        (RuntimeError("CUDA out\n of memory"), "failed: RuntimeError: CUDA out of memory"),
    ],
)
def test_one_that_fails_runs_no_more_and_the_others_go_on(
    log: list[str], error: Exception | Answers, note: str
) -> None:
    failing = Scripted("a", log, [answers(2.0, 3.0), error])
    first, second = race(
        [Entrant("a", "1.0", failing), Entrant("b", None, Scripted("b", log, [answers(2.0, 3.0)] * 3))]
    )
    assert log.count("a") == 2
    assert (first.note, first.ttft_ms, first.turns) == (note, None, [])
    assert second.ttft_ratio == 2.0


def test_one_that_says_something_else_has_no_times(log: list[str]) -> None:
    (peer,) = race([Entrant("a", "1.0", Scripted("a", log, [answers(0.1, 0.2, [[7, 0, 0], [0, 0, 0]])] * 3))])
    assert (peer.same_tokens, peer.ttft_ms, peer.ttft_ratio, peer.tpot_ratio) == (0.25, None, None, None)
    assert peer.note.startswith("different: 25% of its first 2 tokens are ours")


def test_rounding_may_change_a_token_and_all_behind_it() -> None:
    pair = (answers(1, 2, [[1, 2, 3, 4]]), answers(1, 2, [[1, 2, 9, 9]]))
    assert same_tokens([pair]) == 1.0
    assert same_tokens([pair, (answers(1, 2, [[1]]), answers(1, 2, [[5]]))]) == pytest.approx(2 / 3)


def test_one_output_token_has_no_tpot(log: list[str]) -> None:
    assert answers(1.0, 1.0, [[3]]).tpot_s is None
    prompts = [replace(request, output_len=1) for request in PROMPTS]
    turns = [answers(2.0, 2.0, [[7], [1]])] * 3
    (peer,) = race([Entrant("a", "1.0", Scripted("a", log, turns))], prompts)
    assert (peer.ttft_ratio, peer.tpot_ratio, peer.tpot_ms) == (2.0, None, None)


# --- starting and stopping -------------------------------------------------------------------------------------------


def test_without_peers_nothing_is_written_or_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_peers, "weights_folder", None)
    with entrants(loaded(), (), **SIZES) as found:
        assert found == []


def test_what_cannot_start_is_a_note_and_what_started_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    running = Scripted("transformers", [], [])
    folders: list[Path] = []

    def start(checkpoint: object) -> Scripted:
        folders.append(checkpoint.folder)  # type: ignore[attr-defined]
        return running

    def broken(checkpoint: object) -> Scripted:
        raise SystemExit("no GPU")

    modules = {
        "transformers": SimpleNamespace(version=lambda: "5.0", start=start),
        "vllm": SimpleNamespace(version=lambda: "0.33", start=broken),
    }
    monkeypatch.setattr(engine_peers, "load_engine_peer", modules.__getitem__)
    with entrants(loaded(), ("transformers", "vllm"), **SIZES) as found:
        assert found[0] == Entrant("transformers", "5.0", running, "scripted")
        assert found[1] == Entrant("vllm", "0.33", None, "failed to start: SystemExit: no GPU")
        assert (folders[0] / "config.json").is_file()
        assert not running.closed
    assert running.closed
    assert not folders[0].exists()


def test_weights_that_no_other_engine_reads_are_a_note_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model = replace(TINY, decoder=Decoder(family="gpt2", exact=True))
    with_others = loaded()
    with_others.model = model
    with entrants(with_others, ENGINE_PEERS, **SIZES) as found:
        assert [entrant.name for entrant in found] == list(ENGINE_PEERS)
        assert {entrant.note[:47] for entrant in found} == {"random weights of tiny-llama have no transforme"}


# --- the whole benchmark ---------------------------------------------------------------------------------------------


def test_a_bench_with_transformers_tells_its_times_next_to_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "measure_roofline", lambda *arguments, **named: FAST)
    options = replace(
        latency_only(input_lens=(20,), batch_sizes=(1, 2)), peers=("transformers", "transformers-paged", "vllm")
    )
    outcome = run.bench(TINY, config(), options, progress=lambda doing, done: None)
    assert msgspec.json.decode(encode(outcome.document), type=BenchDocument) == outcome.document
    for case in outcome.document.cases:
        dynamic, paged, vllm = case.peers
        for peer in (dynamic, paged):
            assert (peer.same_tokens, len(peer.turns)) == (1.0, options.num_iters)
            assert peer.ttft_ratio is not None
            assert peer.tpot_ratio is not None
            assert peer.ttft_ratio > 0 < peer.tpot_ratio
        assert "first CUDA device" in vllm.note
        assert case.memory.peak_bytes is None  # other weights were in the process
        assert case.memory.kv_predicted_bytes == case.memory.kv_allocated_bytes


@pytest.mark.parametrize(
    "options",
    [latency_only(concurrency=2), latency_only(request_rate=5.0), replace(OPTIONS, parts=(PREFIX,))],
)
def test_peers_run_whole_batches_only(options: BenchOptions) -> None:
    with pytest.raises(KvtoolError, match="--peers run whole batches of the latency part"):
        replace(options, peers=("transformers",))
