"""Peers of one kernel measurement: made ready, checked against the same reference, timed by the caller in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import torch

from kvtool.bench.kernels.calls import Measurement
from kvtool.bench.kernels.passes import Pass, make_pass, within
from kvtool.bench.kernels.peers.peer import Peer, Prepared, load_peer
from kvtool.bench.metrics import summary_ms
from kvtool.bench.peers import PeerError, one_line
from kvtool.machine.stats import paired_ratio_of_medians
from kvtool.machine.timers import Call, CallTimer
from kvtool.results import KernelPeer

DIFFERENT = "different: not the output of the reference kernels, so not timed"


@dataclass(frozen=True, slots=True)
class Entry:
    """A peer's result before it is timed, and its pass; None for a peer that is not timed."""

    result: KernelPeer
    timed: Pass | None = None


@dataclass(frozen=True, slots=True)
class Track:
    """What all contenders of a case run on: at most `num_calls` a pass, and no longer than `seconds`."""

    device: torch.device
    num_calls: int
    seconds: float
    timer: CallTimer
    capture: bool


def enter(name: str, measurement: Measurement, track: Track) -> Entry:
    """The peer called `name`, ready to run. Whatever goes wrong with it is its note, never an exception."""
    version = None
    try:
        peer = load_peer(name)
        if reason := peer.why_not(measurement.work, track.device):
            return Entry(KernelPeer(name=name, version=None, note=reason))
        version = peer.version()
        return _checked(KernelPeer(name=name, version=version), peer, measurement, track)
    except PeerError as refusal:
        return Entry(KernelPeer(name=name, version=version, note=str(refusal)))
    except Exception as error:  # of somebody else's library, which may raise anything
        return Entry(KernelPeer(name=name, version=version, note=f"failed: {one_line(error)}"))


def _checked(result: KernelPeer, peer: Peer, measurement: Measurement, track: Track) -> Entry:
    scenes = measurement.scenes[: track.num_calls]
    prepared = peer.prepare(measurement.work, measurement.layer, scenes)
    check = measurement.check_output(prepared.output(prepared.calls[0]()))
    result = msgspec.structs.replace(result, outputs_equal=check.outputs_equal, max_abs_diff=check.max_abs_diff)
    if not check.outputs_equal:
        return Entry(msgspec.structs.replace(result, note=DIFFERENT))
    timed, remark = _pass(prepared, track)
    note = ". ".join(filter(None, (prepared.note, remark)))
    return Entry(msgspec.structs.replace(result, note=note, moved_bytes=prepared.moved_bytes), timed)


def _pass(prepared: Prepared, track: Track) -> tuple[Pass, str]:
    """In a CUDA graph like ours, else launched from Python, and a remark that says so."""
    calls: Sequence[Call] = within(track.seconds, prepared.calls, track.timer)
    try:
        return make_pass(calls, track.device, capture=track.capture), ""
    except Exception as error:
        torch.cuda.synchronize(track.device)
        remark = f"with the cost of launching it from Python: no CUDA graph ({one_line(error, 80)})"
        return make_pass(calls, track.device, capture=False), remark


def with_times(entry: Entry, passes_s: Sequence[float], ours_s: Sequence[float]) -> KernelPeer:
    """The result of a peer that took these seconds a pass while a call of ours took `ours_s`, round by round."""
    assert entry.timed is not None
    samples = [seconds / entry.timed.num_calls for seconds in passes_s]
    ratio = paired_ratio_of_medians(ours_s, samples)
    return msgspec.structs.replace(
        entry.result,
        samples_s=samples,
        time_ms=summary_ms(samples),
        ratio=ratio.value,
        ratio_ci_low=ratio.low,
        ratio_ci_high=ratio.high,
    )
