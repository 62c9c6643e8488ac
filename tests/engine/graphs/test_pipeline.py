"""Steps launched ahead of their tokens give what the plain engine gives: whoever comes, goes, stops or gives way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvtool.catalog.resolve import resolve_model
from kvtool.engine.config import EngineConfig
from kvtool.engine.engine import Engine
from kvtool.engine.graphs import pipeline as pipelines
from kvtool.engine.graphs.changes import RowChanges
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.sequence import SamplingParams, Sequence
from kvtool.kernels import load_kernels
from tests.engine.conftest import SaveTiny
from tests.engine.requests import Request, run
from tests.engine.running import as_it_is, engine_of, generate, load, prompt, use
from tests.engine.test_engine import changed
from tests.engine.tiny import MAX_POSITIONS, VOCAB_SIZE

LOGIT_TOLERANCE = 2e-5  # fp32: a batch of another size sums in another order


@pytest.fixture(scope="module")
def loaded(tiny: SaveTiny) -> LoadedModel:
    return load(tiny("llama-3-gqa").folder)


def assert_same(loaded: LoadedModel, requests: list[Request], **config: object) -> tuple[Engine, list[Sequence]]:
    """Tokens, logits and pages of every request. Returns the engine that launches ahead, and its sequences."""
    plain, ahead = (engine_of(loaded, capture=capture, **config) for capture in (None, as_it_is))
    expected, found = run(plain, requests), run(ahead, requests)
    assert [s.output_ids for s in found] == [s.output_ids for s in expected]
    assert [s.peak_pages for s in found] == [s.peak_pages for s in expected]
    for one, other in zip(found, expected, strict=True):
        assert float((torch.stack(one.logits) - torch.stack(other.logits)).abs().max()) < LOGIT_TOLERANCE
    assert plain.pipeline is None
    assert ahead.pipeline is not None
    assert not ahead.pipeline.last
    return ahead, found


@pytest.mark.parametrize(
    ("batch_size", "bucket"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8), (9, 16), (16, 16), (17, 20), (20, 20)]
)
def test_batches_at_the_borders_of_buckets(loaded: LoadedModel, batch_size: int, bucket: int) -> None:
    requests = [Request(prompt(3 + 5 * index), max_tokens=6) for index in range(batch_size)]
    engine, _ = assert_same(loaded, requests, num_pages=128, max_num_seqs=20)
    assert engine.pipeline.graphs.buckets == [bucket]


@pytest.mark.parametrize("name", [
    *("llama-yarn", "mistral-window", "qwen3", "deepseek-v2-lite", "deepseek-v3", "gemma2", "gemma3", "gpt-oss"),
    *("phi3-longrope", "olmo2", "smollm3", "gpt2", "opt", "mixtral"),
])  # fmt: skip
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_every_kind_of_model(tiny: SaveTiny, name: str, backend: str) -> None:
    loaded = load(tiny(name).folder)
    use(loaded, load_kernels(backend))
    assert_same(loaded, [Request(prompt(21), 20), Request(prompt(3), 9), Request(prompt(30), 14)])


def test_random_weights_route_every_token_to_the_same_experts(tiny: SaveTiny) -> None:
    """Experts are drawn from tokens and positions, which are on the device alone."""
    model = resolve_model(str(tiny("qwen3-moe").folder))
    config = EngineConfig(weights="random", dtype="fp32", device="cpu")
    assert_same(
        LoadedModel(model, config, max_positions=MAX_POSITIONS), [Request(prompt(9), 20), Request(prompt(4), 5)]
    )


def test_sequences_that_end_one_after_the_other(loaded: LoadedModel) -> None:
    lengths = [(5, 3), (17, 30), (2, 11), (40, 4), (1, 19), (8, 1), (9, 2), (16, 16), (31, 40)]
    engine, sequences = assert_same(loaded, [Request(prompt(n), m) for n, m in lengths])
    assert [s.num_output for s in sequences] == [m for _, m in lengths]
    assert engine.pipeline.graphs.buckets == [8, 4, 2, 1]


def with_ends(tiny: SaveTiny, folder: Path, stops: list[int]) -> LoadedModel:
    source = tiny("llama-3-gqa").folder
    model = resolve_model(changed(source, folder, eos_token_id=stops))
    config = EngineConfig(weights=str(source), dtype="fp32", device="cpu")
    return LoadedModel(model, config, max_positions=MAX_POSITIONS)


def test_a_sequence_that_ends_in_flight_loses_its_extra_token_alone(tiny: SaveTiny, tmp_path: Path) -> None:
    free = generate(engine_of(load(tiny("llama-3-gqa").folder)), [prompt(10), prompt(4)], max_tokens=40)
    stop = next(token for token in free[0].output_ids[5:] if token not in free[0].output_ids[:5] + free[1].output_ids)
    ends = with_ends(tiny, tmp_path / "m", [stop])
    requests = [Request(prompt(10), 40, ignore_eos=False), Request(prompt(4), 40, ignore_eos=False)]
    engine, (ended, other) = assert_same(ends, requests)
    assert ended.output_ids[-1] == stop
    assert other.output_ids == free[1].output_ids
    assert engine.pipeline.num_launched == other.num_output - 1, "the step in flight served the other one"


def test_when_all_end_in_flight_the_engine_is_idle_and_starts_again(tiny: SaveTiny, tmp_path: Path) -> None:
    free = generate(engine_of(load(tiny("llama-3-gqa").folder)), [prompt(10)], max_tokens=40)[0].output_ids
    stop = free[6]
    loaded = with_ends(tiny, tmp_path / "m", [stop])
    engine = engine_of(loaded, capture=as_it_is)
    request = Request(prompt(10), 40, ignore_eos=False)
    first = run(engine, [request])[0]
    assert first.output_ids == free[: free.index(stop) + 1]
    assert not engine.pipeline.last
    assert run(engine, [request])[0].output_ids == first.output_ids


def test_requests_that_arrive_while_a_step_is_in_flight(loaded: LoadedModel) -> None:
    requests = [Request(prompt(12), 30), Request(prompt(5), 8, arrival=4), Request(prompt(50), 12, arrival=9)]
    assert_same(loaded, requests)
    assert_same(loaded, requests, prefill_first=True)
    assert_same(loaded, requests, max_num_batched_tokens=7)
    assert_same(loaded, requests, max_num_seqs=2)


def test_a_request_waits_for_no_more_than_the_steps_in_flight(loaded: LoadedModel) -> None:
    engine = engine_of(loaded, capture=as_it_is)
    engine.add(prompt(12), SamplingParams(max_tokens=100))
    for _ in range(10):
        engine.step()
    late = engine.add(prompt(5), SamplingParams(max_tokens=3))
    engine.step()  # was in flight
    assert late in engine.step()


def test_a_pool_too_small_for_all_makes_some_give_way(loaded: LoadedModel) -> None:
    requests = [Request(prompt(20 + index), 40) for index in range(4)]
    _, sequences = assert_same(loaded, requests, num_pages=9)
    assert sum(s.num_preemptions for s in sequences) > 0


def test_cached_prefixes_are_hit_and_stay_as_they_are(loaded: LoadedModel) -> None:
    shared = prompt(40)
    requests = [Request(shared + prompt(5, seed=index), 20, arrival=15 * index) for index in range(4)]
    _, sequences = assert_same(loaded, requests)
    assert [s.cached_tokens for s in sequences] == [0, 32, 32, 32]


def test_the_next_step_is_launched_before_tokens_are_read(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    trace: list[str] = []
    for name in ("launch", "wait"):
        method = getattr(pipelines.DecodePipeline, name)

        def traced(self, *args, _name=name, _method=method, **kwargs):
            trace.append(_name)
            return _method(self, *args, **kwargs)

        monkeypatch.setattr(pipelines.DecodePipeline, name, traced)
    run(engine_of(loaded, capture=as_it_is), [Request(prompt(5), 6), Request(prompt(7), 6)])
    assert trace == [*["launch", "wait"] * 5, "wait"]  # five decode steps, the first behind the prompts' own step


def test_a_decode_is_launched_before_the_tokens_of_a_mixed_step_are_read(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless a prompt is not whole yet, or somebody else may come."""
    trace: list[tuple[str, list[int]]] = []
    for name in ("launch", "follow", "wait"):
        method = getattr(pipelines.DecodePipeline, name)

        def traced(self, *args, _name=name, _method=method, **kwargs):
            trace.append((_name, [item.num_tokens for item in args[0]] if args else []))
            return _method(self, *args, **kwargs)

        monkeypatch.setattr(pipelines.DecodePipeline, name, traced)
    requests = [Request(prompt(5), 7), Request(prompt(20), 3, arrival=3)]
    assert_same(loaded, requests, max_num_batched_tokens=12)
    begun = [index for index, (name, tokens) in enumerate(trace) if name == "follow" and len(tokens) > 1]
    (first, last), chunks = begun, [trace[index][1] for index in begun]
    assert chunks == [[1, 11], [1, 9]]
    assert [name for name, _ in trace[first : last + 3]] == ["follow", "wait", "follow", "launch", "wait"]
    assert trace[last + 1][1] == [1, 1]


def test_only_what_changed_is_written(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[list[int], list[int]]] = []
    send = RowChanges.send

    def traced(changes: RowChanges, rows: object) -> None:
        sent.append((changes.at, changes.entries))
        send(changes, rows)

    monkeypatch.setattr(RowChanges, "send", traced)
    engine = engine_of(loaded, capture=as_it_is)
    width = MAX_POSITIONS // engine.cache.block_size
    run(engine, [Request(prompt(14), 22), Request(prompt(3), 6), Request(prompt(1), 9)])
    assert sent[0] == ([0, 1, 2], [0, width, 2 * width])
    changes = [change for change in sent[1:] if change != ([], [])]
    assert changes == [
        ([], [1]),  # the 17th token of the first sequence
        ([2, 1], [width]),  # the third moves into the row that the second left, and its own becomes padding
        ([1], []),  # it ends
        ([], [2]),  # the 33rd token of the first
    ]


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_drawn_tokens_come_back_with_their_seed(loaded: LoadedModel, temperature: float) -> None:
    params = [
        SamplingParams(max_tokens=20, temperature=temperature, top_p=0.9),
        SamplingParams(max_tokens=12, temperature=temperature),
        SamplingParams(max_tokens=20),
        SamplingParams(max_tokens=9, temperature=temperature, top_p=0.5),
    ]
    outputs = []
    for seed, capture in ((1, as_it_is), (1, as_it_is), (2, as_it_is)):
        engine = engine_of(loaded, seed=seed, capture=capture)
        sequences = [engine.add(prompt(5 + index), row) for index, row in enumerate(params)]
        list(engine.run_until_idle())
        outputs.append([s.output_ids for s in sequences])
    greedy = generate(engine_of(loaded), [prompt(7)], max_tokens=20)[0].output_ids
    assert outputs[0] == outputs[1] != outputs[2]
    assert outputs[0][2] == outputs[2][2] == greedy, "a greedy row beside drawn ones"


def test_a_full_bucket_draws_what_the_plain_engine_draws(loaded: LoadedModel) -> None:
    """Padding draws too, and is dropped; without it both take the same numbers from the generator."""
    outputs = []
    for capture in (None, as_it_is):
        engine = engine_of(loaded, seed=3, capture=capture)
        params = SamplingParams(max_tokens=15, temperature=1.2, top_p=0.8)
        sequences = [engine.add(prompt(5 + index), params) for index in range(4)]
        list(engine.run_until_idle())
        outputs.append([s.output_ids for s in sequences])
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("where", ["launch", "wait", "send"])
def test_an_interrupt_leaves_an_engine_that_goes_on(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Ctrl-C in any call of any step: what was not read is computed again. Pages of who ended are soon another's."""
    requests = [Request(prompt(n), m) for n, m in ((12, 40), (15, 9), (14, 5), (3, 30), (1, 4))]
    expected = [s.output_ids for s in run(engine_of(loaded), requests)]
    owner = RowChanges if where == "send" else pipelines.DecodePipeline
    method = getattr(owner, where)
    for at in range(39 if where != "wait" else 38):
        calls = iter(range(1000))

        def interrupted(self, *args, _calls=calls, _at=at, **kwargs):
            number = next(_calls)
            result = None if number == _at and where == "send" else method(self, *args, **kwargs)
            if number == _at:
                raise KeyboardInterrupt
            return result

        engine = engine_of(loaded, num_pages=8, prefix_caching=False, capture=as_it_is)
        monkeypatch.setattr(owner, where, interrupted)
        sequences = [engine.add(request.prompt, SamplingParams(max_tokens=request.max_tokens)) for request in requests]
        with pytest.raises(KeyboardInterrupt):
            list(engine.run_until_idle())
        for _ in engine.run_until_idle():
            num_live = int((engine.pipeline.rows.positions >= 0).sum())
            assert num_live == len(engine.pipeline.last) or not engine.pipeline.last
        assert [s.output_ids for s in sequences] == expected
        engine.cache.check()
        monkeypatch.setattr(owner, where, method)


STOPS = list(range(0, VOCAB_SIZE, 11))
PROMPTS = [prompt(length, seed=length) for length in (1, 2, 7, 16, 33)]


@pytest.fixture(scope="module")
def often_ending(tiny: SaveTiny, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return with_ends(tiny, tmp_path_factory.mktemp("often") / "m", STOPS)


@settings(max_examples=60, deadline=None)
@example(  # one gives way, finds all its whole pages again, and decodes at once at the position where it was
    requests=[
        Request([36, 36], 28, arrival=15, ignore_eos=False),
        Request([36, 36], 9, arrival=28, ignore_eos=False),
        Request(PROMPTS[1] + PROMPTS[2], 9, ignore_eos=False),
        Request(PROMPTS[1] + PROMPTS[4], 7, arrival=30, ignore_eos=False),
        Request(PROMPTS[1] + PROMPTS[4], 7, arrival=30, ignore_eos=False),
        Request(PROMPTS[4] + PROMPTS[1], 17, arrival=19, ignore_eos=False),
    ],
    num_pages=45,
    config={
        "block_size": 4,
        "max_num_seqs": 6,
        "max_num_batched_tokens": 500,
        "prefill_first": False,
        "prefix_caching": True,
    },
)
@given(
    requests=st.lists(
        st.builds(
            Request,
            prompt=st.tuples(st.sampled_from(PROMPTS), st.sampled_from(PROMPTS)).map(lambda pair: pair[0] + pair[1]),
            max_tokens=st.integers(1, 30),
            arrival=st.integers(0, 30),
            ignore_eos=st.booleans(),
        ),
        min_size=1,
        max_size=10,
    ),
    num_pages=st.integers(24, 60),
    config=st.fixed_dictionaries({
        "block_size": st.sampled_from([4, 16]),
        "max_num_seqs": st.sampled_from([1, 3, 6, 32]),
        "max_num_batched_tokens": st.sampled_from([3, 20, 500]),
        "prefill_first": st.booleans(),
        "prefix_caching": st.booleans(),
    }),
)  # fmt: skip
def test_any_schedule(
    often_ending: LoadedModel, requests: list[Request], num_pages: int, config: dict[str, object]
) -> None:
    """Requests come at any time, stop at any time, and give way when pages run out."""
    assert_same(often_ending, requests, num_pages=num_pages, **config)
