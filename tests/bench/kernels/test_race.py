"""Peers of a run: whatever goes wrong with one is its note, and only an equal output is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from kvtool.bench.kernels import kernels
from kvtool.bench.kernels import race as kernel_peers
from kvtool.bench.kernels.calls import Measurement, Queries
from kvtool.bench.kernels.passes import Pass
from kvtool.bench.kernels.peers.peer import Prepared
from kvtool.bench.kernels.race import DIFFERENT, Entry, Track, enter, with_times
from kvtool.bench.peers import PeerError
from kvtool.results import KernelPeer, encode
from tests.bench.kernels.test_kernels import CPU, TINY, measured, quick, run, works

assert quick  # a fixture
TRACK = Track(CPU, num_calls=2, seconds=1.0, timer=lambda call: 0.1, capture=False)


class Echo:
    """A peer that calls our own kernels, then does `spoil` to what they return."""

    def __init__(self, measurement: Measurement, spoil: Callable[[Tensor], Any] = lambda out: out) -> None:
        self.measurement, self.spoil = measurement, spoil

    def version(self) -> str:
        return "1.2"

    def why_not(self, work: object, device: object) -> str | None:
        return None

    def prepare(self, work: object, layer: object, scenes: Sequence[Queries]) -> Prepared:
        def call(ours: Callable[[], Tensor]) -> Any:
            return self.spoil(ours())

        calls = [lambda ours=ours: call(ours) for ours in self.measurement.calls[: len(scenes)]]
        return Prepared(calls=calls, output=lambda out: out, note="an echo")


def entered(monkeypatch: pytest.MonkeyPatch, peer: object, measurement: Measurement, track: Track = TRACK) -> Entry:
    monkeypatch.setattr(kernel_peers, "load_peer", lambda name: peer)
    return enter("echo", measurement, track)


@pytest.fixture
def decode() -> Measurement:
    return measured(works(TINY, dtype="fp32", cache="fp32")["decode"])


def test_an_equal_peer_is_ready_with_as_many_calls_as_ours(
    decode: Measurement, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = entered(monkeypatch, Echo(decode), decode)
    assert entry.timed is not None
    assert entry.timed.num_calls == 2
    assert (entry.result.version, entry.result.outputs_equal, entry.result.note) == ("1.2", True, "an echo")


def test_a_different_answer_is_not_timed(decode: Measurement, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = entered(monkeypatch, Echo(decode, spoil=lambda out: out * 1.01), decode)
    assert entry.timed is None
    assert (entry.result.outputs_equal, entry.result.note) == (False, DIFFERENT)
    assert entry.result.max_abs_diff is not None
    assert entry.result.max_abs_diff > 0


def test_nan_is_a_different_answer(decode: Measurement, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = entered(monkeypatch, Echo(decode, spoil=lambda out: out * float("nan")), decode)
    assert (entry.timed, entry.result.outputs_equal, entry.result.max_abs_diff) == (None, False, None)


def raises(error: BaseException) -> Callable[[Tensor], Any]:
    def spoil(out: Tensor) -> Any:
        raise error

    return spoil


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (PeerError("no room for it"), "no room for it"),
        (RuntimeError("CUDA error:\n  misaligned"), "failed: RuntimeError: CUDA error: misaligned"),
        (AssertionError(), "failed: AssertionError: AssertionError"),
    ],
)
def test_a_peer_that_fails_says_so_in_a_line(
    decode: Measurement, error: Exception, note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = entered(monkeypatch, Echo(decode, spoil=raises(error)), decode)
    assert (entry.timed, entry.result.note, entry.result.version) == (None, note, "1.2")


def test_ctrl_c_is_not_a_peer_s_failure(decode: Measurement, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        entered(monkeypatch, Echo(decode, spoil=raises(KeyboardInterrupt())), decode)


def test_a_peer_that_no_graph_captures_is_launched_from_python(
    decode: Measurement, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_pass(calls: Sequence[Any], device: object, *, capture: bool) -> Pass:
        if capture:
            raise RuntimeError("operation not permitted when stream is capturing")
        return Pass(lambda: None, len(calls), None)

    monkeypatch.setattr(kernel_peers, "make_pass", make_pass)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    track = Track(CPU, num_calls=3, seconds=1.0, timer=lambda call: 0.4, capture=True)
    entry = entered(monkeypatch, Echo(decode), decode, track)
    assert entry.timed is not None
    assert entry.result.note.startswith("an echo. with the cost of launching it from Python: no CUDA graph (Runtime")


def test_a_slow_peer_gets_fewer_calls(decode: Measurement, monkeypatch: pytest.MonkeyPatch) -> None:
    track = Track(CPU, num_calls=3, seconds=1.0, timer=lambda call: 5.0, capture=False)
    entry = entered(monkeypatch, Echo(decode), decode, track)
    assert entry.timed is not None
    assert entry.timed.num_calls == 1


def test_times_are_per_call_and_over_ours() -> None:
    entry = Entry(KernelPeer(name="echo", version=None), Pass(lambda: None, 4, None))
    peer = with_times(entry, passes_s=[0.8, 1.6, 1.2], ours_s=[0.1, 0.1, 0.1])
    assert peer.samples_s == pytest.approx([0.2, 0.4, 0.3])
    assert peer.time_ms is not None
    assert (peer.time_ms.p50, peer.time_ms.n) == (pytest.approx(300), 3)
    assert peer.ratio == pytest.approx(3)
    assert (peer.ratio_ci_low, peer.ratio_ci_high) == (pytest.approx(2), pytest.approx(4))


def test_a_run_with_peers(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """SDPA for real; a store has no peers; a library that is not here is a note."""
    monkeypatch.setitem(__import__("sys").modules, "flashinfer", None)
    outcome = run(peers=("sdpa", "flashinfer"), num_iters=3, dtype="bf16")
    encode(outcome.document)
    decode, prefill, *stores = outcome.document.cases
    for case in (decode, prefill):
        sdpa, absent = case.peers
        assert sdpa.outputs_equal
        assert len(sdpa.samples_s) == len(case.samples_s) == 3
        assert sdpa.ratio is not None
        assert (absent.time_ms, absent.note.partition(":")[0]) == (None, "not importable")
    assert not any(case.peers for case in stores)


def test_without_peers_no_peer_is_loaded(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "enter", lambda *args: pytest.fail("it was loaded"))
    assert not any(case.peers for case in run().document.cases)
