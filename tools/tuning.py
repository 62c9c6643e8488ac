"""Which tile is fastest for a piece of kernel work on this device: the rules' own against its neighbours, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch

from kvtool.bench.kernels.calls import Measurement, filled_pool
from kvtool.bench.kernels.passes import Pass, make_pass, within
from kvtool.bench.kernels.work import KernelWork
from kvtool.kernels import load_kernels
from kvtool.kernels.triton.gpu import trying
from kvtool.kernels.triton.tiles.rules import Shape, Tile
from kvtool.kernels.triton.tiles.tuned import TunedTile
from kvtool.machine.timers import CallTimer, Contender, time_in_turns
from kvtool.system.errors import KvtoolError

MARGIN = 0.02  # by which a tile must beat the one in its place
PASS_SECONDS = 0.05
ROUNDS = 7
STEPS: dict[str, tuple[int, ...]] = {
    "num_stages": (2, 3, 4, 5),
    "block_n": (16, 32, 64, 128),
    "by_descriptor": (True, False),
    "num_warps": (4, 8),
    "block_m": (16, 32, 64, 128),
    "programs": (1, 2, 3, 4),
    "lists": (False, True),
    "integers": (False, True),
}
OF_DECODE = ("programs", "lists", "integers")  # what no other operation looks at


@dataclass(frozen=True, slots=True)
class Bench:
    """Where tiles are tried: on calls of `measurement`, captured as CUDA graphs or launched, timed by `timer`."""

    measurement: Measurement
    timer: CallTimer
    capture: bool

    @property
    def device(self) -> torch.device:
        return self.measurement.device


def tune(
    work: KernelWork,
    device: torch.device,
    *,
    stream_bytes: int,
    timer: CallTimer,
    capture: bool,
    go_on: Callable[[], bool],
) -> TunedTile | None:
    """The fastest tile for `work`, None where the rules' own is. `go_on` is asked before each tile that is tried.

    One setting after another is moved away from the best so far. A tile that does not compile, does not fit or gives
    another answer is out.
    """
    random = torch.Generator(device).manual_seed(0)
    num_calls = work.calls(stream_bytes)
    pool = filled_pool(work, num_calls * work.call_pages, device, random)
    bench = Bench(Measurement(work, load_kernels("triton"), pool, num_calls, random), timer, capture)
    shape, rule = asked(bench.measurement)
    best, rule_ms, best_ms = rule, None, None
    for setting in settings_of(shape):
        for tile in neighbours(best, setting):
            if not go_on():
                break
            times = raced(bench, shape, rule, tile)
            if times is None:
                continue
            rule_ms = times[0] if rule_ms is None else rule_ms
            if times[1] < times[0] * (1 - MARGIN) and (best_ms is None or times[1] < best_ms * (1 - MARGIN)):
                best, rule_ms, best_ms = tile, *times
    if best_ms is None or rule_ms is None:
        return None
    return TunedTile(shape=shape, tile=best, work=work.name, ms=best_ms, rule_ms=rule_ms)


def settings_of(shape: Shape) -> list[str]:
    """What can be varied."""
    return [name for name in STEPS if shape.operation == "decode" or name not in OF_DECODE]


def neighbours(tile: Tile, setting: str) -> Iterator[Tile]:
    """The tile with other values of one setting."""
    for value in STEPS[setting]:
        other = replace(tile, **{setting: value})
        if other != tile and other.fault is None:
            yield other


class _LookedUp(list[tuple[Shape, Tile]]):
    """Has the rules' tile for every shape, and keeps what was looked up."""

    def get(self, shape: Shape, rule: Tile, /) -> Tile:
        self.append((shape, rule))
        return rule


def asked(measurement: Measurement) -> tuple[Shape, Tile]:
    """The shape that a call of the measurement looks up, and what the rules say of it."""
    looked_up = _LookedUp()
    with trying(looked_up):
        measurement.calls[0]()
    if not looked_up:
        raise KvtoolError(f"{measurement.work.kernel} has no tile to choose")
    return looked_up[0]


def raced(bench: Bench, shape: Shape, rule: Tile, tile: Tile) -> tuple[float, float] | None:
    """Milliseconds of a call with the rules' tile and with this one; None where this one cannot be had."""
    passes: list[Pass] = []
    for one in (rule, tile):
        with trying({shape: one}):
            made = _pass(bench)
        if made is None:
            return None
        passes.append(made)
    # A graph has its tile inside; calls that Python launches look theirs up each time.
    sweeps = [each.contender(None) for each in passes] if bench.capture else _looking_up(passes, shape, (rule, tile))
    timed = time_in_turns(sweeps, device=str(bench.device), warmup=1, iterations=ROUNDS, timer=bench.timer)
    times = [median(t.seconds) / p.num_calls * 1e3 for t, p in zip(timed, passes, strict=True)]
    return times[0], times[1]


def _pass(bench: Bench) -> Pass | None:
    """Calls with the tile on trial, after a look at what one gives. None where it does not run, or not right."""
    try:
        if not bench.measurement.check().outputs_equal:
            return None
        calls = within(PASS_SECONDS, bench.measurement.calls, bench.timer)
        return make_pass(calls, bench.device, capture=bench.capture)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception:  # the compiler's and the driver's refusals have no common type
        return None


def _looking_up(passes: Sequence[Pass], shape: Shape, tiles: Sequence[Tile]) -> list[Contender]:
    def sweep(each: Pass, tile: Tile) -> None:
        with trying({shape: tile}):
            each.sweep()

    return [Contender(partial(sweep, each, tile)) for each, tile in zip(passes, tiles, strict=True)]
