"""Which steps are captured, when, and how long that took. Real captures are in tests/gpu."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from itertools import count

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvtool.engine import engine as engines
from kvtool.engine.engine import Engine
from kvtool.engine.graphs.capture import Step, bucket_of
from kvtool.engine.graphs.cold_start import CompileTime
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.sequence import SamplingParams
from kvtool.kernels.choosing import may_time
from kvtool.system.errors import DeviceError
from tests.engine.conftest import SaveTiny
from tests.engine.running import as_it_is, engine_of, generate, load, prompt


@pytest.fixture(scope="module")
def loaded(tiny: SaveTiny) -> LoadedModel:
    return load(tiny("llama-3-gqa").folder)


@given(num_rows=st.integers(1, 300), most=st.integers(1, 300))
def test_a_bucket_holds_its_rows_and_wastes_few(num_rows: int, most: int) -> None:
    num_rows = min(num_rows, most)
    bucket = bucket_of(num_rows, most)
    assert num_rows <= bucket <= most
    assert bucket - num_rows < min(8, num_rows)
    assert bucket in (1, 2, 4, most) or bucket % 8 == 0
    assert bucket_of(bucket, most) == bucket


def test_the_logits_of_captured_steps_need_room_beside_the_pool(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 5 rows of 131 tokens in fp32."""
    pool_bytes = 8 * loaded.page_bytes
    for free, fits in ((pool_bytes + 5 * 131 * 4, True), (pool_bytes + 5 * 131 * 4 - 1, False)):
        monkeypatch.setattr("kvtool.engine.loaded.available_bytes", lambda device, free=free: free)
        refused = nullcontext() if fits else pytest.raises(DeviceError, match="free beside captured steps")
        with refused:
            engine_of(loaded, num_pages=8, capture=Recorder(), max_num_seqs=5)


class Recorder:
    """A capture that counts, and takes a second of `clock` for each."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0
        self.now = count()

    def __call__(self, step: Step, generator: torch.Generator) -> Step:
        self.captured += 1
        next(self.now)

        def replay() -> None:
            self.replayed += 1
            step()

        return replay

    def clock(self) -> float:
        return float(next(self.now))


def test_a_step_is_captured_once_for_each_bucket_and_way_to_sample(loaded: LoadedModel) -> None:
    capture = Recorder()
    engine = Engine(loaded, num_pages=64, capture=capture)
    drawn = SamplingParams(max_tokens=3, temperature=1.0)
    for batch in ([3], [3], [3, 5, 7], [2, 4, 6, 8]):
        generate(engine, [prompt(length) for length in batch], 3)
    assert (capture.captured, capture.replayed) == (2, 8)
    for params in (drawn, drawn, replace(drawn, top_p=0.5)):
        engine.add(prompt(3), params)
        list(engine.run_until_idle())
    assert capture.captured == 4
    engine.keep_logits = True
    generate(engine, [prompt(3)], 3)
    assert capture.captured == len(engine.pipeline.graphs) == 5


def test_what_is_prepared_is_not_captured_by_a_request(loaded: LoadedModel) -> None:
    capture = Recorder()
    engine = Engine(loaded, num_pages=64, capture=capture, clock=capture.clock)
    engine.prepare(range(1, 18))
    assert engine.pipeline.graphs.buckets == [24, 16, 8, 4, 2, 1], "the largest first: the others fit in its memory"
    assert (capture.captured, capture.replayed) == (6, 0)
    graphs = engine.pipeline.graphs
    assert (len(graphs), graphs.capture_s) == (6, 12.0), "two readings of the clock, one inside"
    assert engine.compiling.seconds is None, "torch compiles nothing"
    generate(engine, [prompt(length) for length in range(1, 14)], 4)
    assert capture.captured == 6


def test_kernels_time_their_ways_while_steps_are_prepared_and_never_in_a_request(loaded: LoadedModel) -> None:
    """A bucket that nobody prepared is captured inside a request: with what is known by then."""
    timed: list[bool] = []

    def capture(step: Step, generator: torch.Generator) -> Step:
        timed.append(may_time())
        return step

    engine = Engine(loaded, num_pages=64, capture=capture)
    engine.prepare([2])
    generate(engine, [prompt(3)], 3)
    assert timed == [True, False]


def test_preparing_leaves_sequences_as_they_are(loaded: LoadedModel) -> None:
    expected = generate(engine_of(loaded), [prompt(9), prompt(4)], 12)
    engine = engine_of(loaded, capture=as_it_is)
    sequences = [engine.add(prompt(length), SamplingParams(max_tokens=12)) for length in (9, 4)]
    for at, _ in enumerate(engine.run_until_idle()):
        engine.prepare([1 + at])  # while a step is in flight
    assert [s.output_ids for s in sequences] == [s.output_ids for s in expected]


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """A machine whose decode steps can be captured."""
    recorder = Recorder()
    monkeypatch.setattr(LoadedModel, "capturable", True)
    monkeypatch.setattr(engines, "CudaCapture", lambda: recorder)
    return recorder


def test_steps_are_captured_unless_graphs_are_off(loaded: LoadedModel, on_a_gpu: Recorder) -> None:
    assert len(generate(engine_of(loaded), [prompt(3)], 3)[0].output_ids) == 3
    assert on_a_gpu.captured == 1
    engine = engine_of(loaded, graphs=False)
    generate(engine, [prompt(3)], 3)
    assert (on_a_gpu.captured, engine.pipeline) == (1, None)


def test_a_cpu_captures_nothing(loaded: LoadedModel) -> None:
    engine = engine_of(loaded)
    engine.prepare([1, 2, 3])
    assert (loaded.capturable, engine.pipeline) == (False, None)


def test_triton_tells_what_it_compiled() -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kvtool.kernels.triton.jit.gate import gate_kernel

    source = ASTSource(
        gate_kernel,
        signature={"gate_ptr": "*bf16", "up_ptr": "*bf16", "out_ptr": "*bf16", "gate_stride": "i32", "up_stride": "i32"}
        | {"SIZE": "constexpr", "BLOCK": "constexpr", "ACTIVATION": "constexpr", "PDL": "constexpr"},
        constexprs={(5,): 64, (6,): 64, (7,): "silu", (8,): True},
    )
    ours, before = CompileTime("triton"), triton.knobs.compilation.listener
    with ours.measured():
        triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert 0.0 < ours.seconds < 60.0
    assert triton.knobs.compilation.listener is before
    told = ours.seconds
    clock = ours.apart_from(lambda: 100.0)
    assert clock() == 100.0 - told
    triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert ours.seconds == told, "outside of it nothing is counted"
    with CompileTime("torch").measured():
        assert triton.knobs.compilation.listener is before
