"""Milliseconds that hits save: a prefill's time at a card's own figures, with and without its cached head.

A prefill takes the longer of its FLOPs at the dense bf16 rate and of reading the weights once. This is a floor: real
prefills reach a part of the rate, and save as much more. Where prefills were measured, it takes what they took.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kvtool.catalog.gpus import Gpu
from kvtool.catalog.model import Model
from kvtool.replay.accesses import Accesses
from kvtool.replay.loops.core import FloatArray, IntArray
from kvtool.sizing.speed.traffic import PrefillWork, prefill_work
from kvtool.sizing.weights import weigh
from kvtool.system.errors import KvtoolError


@dataclass(frozen=True, slots=True)
class PrefillFloor:
    """Prefill times of one model. A step computes at `flops_per_s` and takes `weights_s` at least; or it takes what was
    `measured`: seconds of its computing at that rate, and of the whole step, both rising.
    """

    work: PrefillWork
    flops_per_s: float
    weights_s: float
    measured: tuple[tuple[float, float], ...] = ()
    _known: dict[int, float] = field(default_factory=dict, compare=False)

    def saved_ms(self, accesses: Accesses, hits: IntArray, first: int) -> float:
        """The mean of a request, from `first` on, of whose blocks the first `hits` [requests] were cached."""
        if first == accesses.num_requests:
            return 0.0
        inputs, cached = accesses.input_tokens[first:], accesses.tokens_of(hits)[first:]
        whole = self._flops(inputs)
        rest = whole - self._flops(cached) + self._flops(np.zeros(1, dtype=np.int64))
        return float((self._seconds(whole) - self._seconds(rest)).mean() * 1e3)

    def lost_ms(self, length: int, hit: int, tokens: int) -> float:
        """What it takes to compute `tokens` behind the `hit` of a prompt of `length`, in a step that has more to do."""
        end = min(length, hit + tokens)
        return self.compute_s(min(hit, end), end) * 1e3

    def prefill_s(self, length: int, cached: int = 0) -> float:
        """Seconds of a prompt's prefill behind its first `cached` tokens, of which at least the last is computed."""
        return self.step_s(self.last_s(length, min(cached, length - 1)))

    def last_s(self, length: int, start: int) -> float:
        """Seconds of computing a prompt from `start` to its end, its first new token among it."""
        return self.compute_s(start, length) + self._flops_of(0) / self.flops_per_s

    def step_s(self, compute_s: float) -> float:
        """Seconds of a step with so much to compute; behind what was measured it goes on at the rate."""
        return float(self._seconds(np.array([compute_s * self.flops_per_s]))[0])

    def slower(self, factor: float) -> PrefillFloor:
        """All of it in `factor` times the time."""
        points = tuple((compute_s * factor, step_s * factor) for compute_s, step_s in self.measured)
        return PrefillFloor(self.work, self.flops_per_s / factor, self.weights_s * factor, points, self._known)

    def compute_s(self, start: int, stop: int) -> float:
        """Seconds for tokens from `start` to `stop` of a prompt, in a step that has more to do."""
        return (self._flops_of(stop) - self._flops_of(start)) / self.flops_per_s

    def _seconds(self, flops: FloatArray) -> FloatArray:
        compute_s = flops / self.flops_per_s
        if not self.measured:
            return np.asarray(np.maximum(compute_s, self.weights_s))
        known, took = (np.array(column) for column in zip(*self.measured, strict=True))
        return np.asarray(np.interp(compute_s, known, took) + np.maximum(0.0, compute_s - known[-1]))

    def _flops(self, tokens: IntArray) -> FloatArray:
        """FLOPs of prefilling each length from nothing; a cached head saves as many, but for the output head."""
        lengths, which = np.unique(tokens, return_inverse=True)
        flops = np.array([self._flops_of(length) for length in lengths.tolist()], dtype=np.float64)
        return np.asarray(flops[which])

    def _flops_of(self, length: int) -> float:
        """Remembered: the prompts of all rows are the same."""
        if length not in self._known:
            self._known[length] = float(self.work.flops(length))
        return self._known[length]


def prefill_floor(model: Model, gpu: Gpu, num_gpus: int = 1, tflops: float | None = None) -> PrefillFloor:
    """At the rate that was measured of a GPU (`tflops`), else at the card's own.

    Raises KvtoolError for a card without figures, and a model whose parameters cannot be counted.
    """
    if num_gpus < 1:
        raise KvtoolError(f"--tp {num_gpus} must be 1 GPU or more")
    if gpu.bf16_tflops is None or gpu.memory_bandwidth_gbps is None:
        raise KvtoolError(f"{gpu.name} has no known rate or bandwidth: no milliseconds follow from it")
    stored = weigh(model).stored_bytes
    if stored is None:
        raise KvtoolError(f"the parameters of {model.id} cannot be counted: no milliseconds follow from it")
    return PrefillFloor(
        work=counted_work(model),
        flops_per_s=(gpu.bf16_tflops if tflops is None else tflops) * 1e12 * num_gpus,
        weights_s=stored / (gpu.memory_bandwidth_gbps * 1e9 * num_gpus),
    )


def counted_work(model: Model) -> PrefillWork:
    """Raises KvtoolError for a model whose parameters cannot be counted."""
    work = prefill_work(model)
    if work is None:
        raise KvtoolError(f"the parameters of {model.id} cannot be counted: no milliseconds follow from it")
    return work
