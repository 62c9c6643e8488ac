"""A server measured by its URL: hits to the block, failures counted, and a document of what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from kvtool.bench.engines.server.beside import run_own
from kvtool.bench.engines.server.drive import Driver
from kvtool.bench.engines.server.measure import Target, measure_server
from kvtool.bench.engines.server.options import FIXED, ServerOptions
from kvtool.catalog.resolve import resolve_model
from kvtool.engine.config import EngineConfig
from kvtool.engine.endpoint.address import parse_address
from kvtool.engine.endpoint.answer import Answer
from kvtool.engine.endpoint.client import Client
from kvtool.engine.endpoint.faults import EndpointError
from kvtool.engine.endpoint.server import Server, discover
from kvtool.engine.endpoint.wire import Asking, Chat, Completions, chat_words
from kvtool.results import BenchDocument, EndpointCase, encode
from kvtool.system.errors import KvtoolError
from tests.bench.tiny_model import TINY
from tests.cli.in_process import run
from tests.engine.endpoint.fake import DONE, Asked, Events, Fake, serving, token, usage

MODEL = resolve_model("smollm2-135m")


def measure(fake: Fake, options: ServerOptions) -> tuple[list[EndpointCase], BenchDocument, list[str]]:
    client = Client(parse_address(fake.url), timeout_s=10.0)
    server = discover(client)
    target = Target(client=client, server=server, model=MODEL, wire=Completions(MODEL.vocab_size or 0))
    try:
        outcome = measure_server(target, options, progress=lambda doing, done: None, overhead=lambda: 0.5)
    finally:
        client.close()
    encode(outcome.document)
    cases = [case for case in outcome.document.cases if isinstance(case, EndpointCase)]
    return cases, outcome.document, outcome.errors


def small(**given: Any) -> ServerOptions:
    return ServerOptions(**{"input_lens": (64,), "output_len": 4, "num_prompts": 3, "num_iters": 2, "salt": 7} | given)


def test_hit_rates_are_rounded_down_to_blocks_and_found_by_both_counts() -> None:
    """1,024 tokens in blocks of 128: 50 % and 87.5 % are whole blocks, 30 % is not."""
    options = small(input_lens=(1024,), hit_rates=(0.0, 0.3, 0.5, 0.875))
    with serving(Fake(block_tokens=128)) as fake:
        cases, _, errors = measure(fake, options)
    assert errors == []
    for case, made in zip(cases, (0, 256, 512, 896), strict=True):
        told = case.endpoint
        assert told.hits_exact
        assert (
            told.hit_tokens == told.usage_hit_tokens == told.metrics_hit_tokens == told.hit_tokens_expected == 6 * made
        )
        assert (told.hit_rate, told.hit_rate_rounded, told.hit_source) == (made / 1024, made / 1024, "usage")
        assert (told.cache_state, told.errors, told.block_tokens) == ("fresh", {}, 128)
        assert told.output_pinned
        assert len(case.samples) == 6


def test_runs_share_no_prompt_unless_the_cache_is_reset() -> None:
    with serving(Fake()) as fake:
        for salt in (1, 2):
            (case,), _, _ = measure(fake, small(salt=salt))
            assert case.endpoint.hit_tokens == 0
        (case,), document, _ = measure(fake, small(salt=2))
        assert case.endpoint.cache_state == "unknown"
        assert case.endpoint.hit_tokens == 6 * 48
        assert any("it knew these prompts already" in line for line in document.assumptions)
        (case,), _, _ = measure(fake, small(salt=2, reset_cache=True))
        assert (case.endpoint.cache_state, case.endpoint.hit_tokens) == ("reset", 0)


def test_counters_serve_where_usage_is_silent_and_not_where_others_ask_too() -> None:
    with serving(Fake(tells_usage=False)) as fake:
        (case,), _, _ = measure(fake, small(hit_rates=(0.5,)))
        assert (case.endpoint.hit_source, case.endpoint.hit_tokens) == ("metrics", 6 * 32)

        def busy(asked: Asked, number: int) -> tuple[int, dict[str, str], Events]:
            fake.counters["prompt"] += 1000
            return 200, {}, None  # type: ignore[return-value]  # the fake's own answer

        fake.answer = busy
        (case,), document, _ = measure(fake, small(hit_rates=(0.5,), salt=8))
        assert (case.endpoint.hit_source, case.endpoint.hit_rate) == ("none", None)
        assert any("others used the server too" in line for line in document.assumptions)
    with serving(Fake(tells_usage=False, tells_metrics=False)) as fake:
        (case,), _, _ = measure(fake, small(block_size=32))
        assert (case.endpoint.hit_source, case.endpoint.block_tokens, case.endpoint.hits_exact) == ("none", 32, False)


def test_conversations_go_on_from_the_answer() -> None:
    """The fake sends no ids, so that the tokenizer reads its text: one token a letter."""

    class Letters:
        def encode(self, text: str) -> list[int]:
            return [ord(letter) for letter in text]

        def decode(self, token_ids: list[int]) -> str:
            return "".join(map(chr, token_ids))

    with serving(Fake()) as fake:
        client = Client(parse_address(fake.url))
        wire = Completions(MODEL.vocab_size or 0, Letters())
        options = small(scenarios=("multi-turn",), input_lens=(256,), num_prompts=4, concurrency=1)
        driver = Driver(client=client, wire=wire, asking=Asking(model=fake.model))
        plan = options.plan(options.grid[0], discover(client), wire.vocab_size, 0)
        driver.prime(plan.priming)
        driven = driver.drive(plan, concurrency=1)
        prompts = [one.body["prompt"] for one in fake.completions][len(plan.priming) :]
        assert [len(prompt) for prompt in prompts] == [turn.prompt_tokens for turn in plan.turns]
        for before, after in pairwise(prompts):
            assert after[: len(before) + 4] == [*before, *[ord("a")] * 4]
        assert sum(one.answer.cached_tokens or 0 for one in driven.whole) == plan.cached_tokens
        with pytest.raises(KvtoolError, match="name its --tokenizer"):
            Driver(client=client, wire=Completions(49152), asking=driver.asking).drive(plan, concurrency=1)
        client.close()


@pytest.mark.parametrize(
    ("answered", "kind", "count"),
    [
        ((429, (b'{"error": {"message": "slow down"}}',)), "status 429", 2),
        ((200, (token(), b"data: {\n\n")), "json", 2),
        ((200, (token(), None)), "closed", 2),
        ((200, (DONE,)), "empty", 2),
        ((200, (token("aaaa", "length"), usage(64, 4), DONE)), "not streamed", 2),
    ],
)
def test_failures_are_counted_and_the_rest_is_measured(answered: tuple[int, Events], kind: str, count: int) -> None:
    """Every third request of the measured ones fails."""

    def answer(asked: Asked, number: int) -> tuple[int, dict[str, str], Events]:
        status, events = answered
        fails = number > 1 and (number - 2) % 3 == 2
        return (status, {}, events) if fails else (200, {}, None)  # type: ignore[return-value]

    with serving(Fake(answer=answer)) as fake:
        (case,), document, errors = measure(fake, small(num_iters_warmup=0, concurrency=1))
    assert case.endpoint.errors == {kind: count}
    assert (case.endpoint.requests, len(case.samples)) == (6, 4)
    assert [failure.kind for failure in case.endpoint.failures] == [kind] * count
    assert any(f"2 of 6 requests failed (2 {kind})" in line for line in document.assumptions)
    assert errors == []
    assert case.metrics.ttft_ms is not None
    assert case.metrics.ttft_ms.n == 4


def test_two_tokens_an_event_are_counted_by_usage() -> None:
    def pairs(asked: Asked, number: int) -> tuple[int, dict[str, str], Events]:
        prompt, output = len(asked.body["prompt"]), asked.body["max_tokens"]
        return 200, {}, (*(token("ab") for _ in range(output // 2)), token("", "length"), usage(prompt, output), DONE)

    with serving(Fake(answer=pairs, tells_metrics=False)) as fake:
        (case,), document, _ = measure(fake, small())
    assert {sample.output_tokens for sample in case.samples} == {4}
    assert {len(sample.itl_s) for sample in case.samples} == {1}
    assert case.endpoint.tokens_per_event == 2
    assert any("an event brings 2.00 tokens" in line for line in document.assumptions)


def test_a_server_that_dies_ends_the_run_with_what_was_measured() -> None:
    def dying(asked: Asked, number: int) -> tuple[int, dict[str, str], Events]:
        if number < 5:
            return 200, {"Connection": "close"}, None  # type: ignore[return-value]
        fake.stop()
        return 200, {"Connection": "close"}, (token(), None)

    with serving(Fake(answer=dying, tells_metrics=False)) as fake:
        (case,), _, errors = measure(fake, small(num_iters_warmup=0, concurrency=1))
    assert case.endpoint.errors == {"closed": 1, "not sent": 1, "unreachable": 1}
    assert len(case.samples) == 3
    assert errors == [f"the run ended early: no server answers at {fake.url}: Connection refused"]


def test_a_server_that_takes_no_pins_is_asked_without() -> None:
    def strict(asked: Asked, number: int) -> tuple[int, dict[str, str], Events]:
        if "ignore_eos" in asked.body:
            return 400, {}, (b'{"error": {"message": "unknown field ignore_eos"}}',)
        return 200, {}, (token(), token(finish="stop"), usage(len(asked.body["prompt"]), 2), DONE)

    with serving(Fake(answer=strict, tells_metrics=False)) as fake:
        (case,), document, _ = measure(fake, small())
    assert not case.endpoint.output_pinned
    assert any("takes neither ignore_eos nor min_tokens" in line for line in document.assumptions)
    assert any("answers are not as long as asked for" in line for line in document.assumptions)


def test_a_server_that_answers_nothing_is_no_document() -> None:
    fake = Fake(answer=lambda asked, number: (404, {}, (b'{"error": {"message": "no such model"}}',)))
    with serving(fake), pytest.raises(EndpointError, match="the server answers 404: no such model"):
        measure(fake, small())


def test_goodput_counts_failures_as_bad() -> None:
    def half(asked: Asked, number: int) -> tuple[int, dict[str, str], Events]:
        return (500 if number % 2 else 200), {}, None  # type: ignore[return-value]

    with serving(Fake(answer=half)) as fake:
        fake.number = 1  # the probe is answered
        limits = small(num_iters_warmup=0, num_prompts=4, goodput_ms={"e2e": 1e6})
        (case,), _, _ = measure(fake, limits)
    assert case.endpoint.errors == {"status 500": 4}
    assert case.endpoint.goodput_ratio == 0.5


@pytest.fixture
def fake() -> Iterator[Fake]:
    with serving(Fake(key="sk-secret")) as fake:
        yield fake


def test_the_command_prints_a_document_without_the_key(
    fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    small = ("--num-prompts", "2", "--num-iters", "1", "--output-len", "2", "--input-len", "32")
    asked = ("bench", "--url", fake.url, "--api-key-env", "MY_KEY", *small)
    done = run(capsys, monkeypatch, *asked, "--gpu", "h100", "--goodput", "ttft:1000000", "--json")
    assert done.code == 0, done.err
    case = json.loads(done.out)["cases"][0]
    assert case["part"] == "endpoint"
    assert case["endpoint"]["floor_tpot_ms"] > 0
    assert case["endpoint"]["goodput_ratio"] == 1
    assert case["endpoint"]["url_model"] == "smollm2-135m"
    assert "sk-secret" not in done.out + done.err
    shown = run(capsys, monkeypatch, *asked, "--hit-rate", "0.5")
    assert shown.code == 0
    assert "Prefix hits, as the server counts them" in shown.out
    assert "0 of 2" in shown.out


def test_a_run_without_an_answer_is_printed_and_failed(
    fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the probe is answered."""
    fake.key = None
    fake.answer = lambda asked, number: (200, {}, None) if number == 1 else (500, {}, (b"oops",))  # type: ignore[return-value]
    small = ("--num-prompts", "2", "--num-iters", "1", "--num-iters-warmup", "0", "--input-len", "32")
    done = run(capsys, monkeypatch, "bench", "--url", fake.url, *small)
    assert done.code == 3
    assert "2 of 2 (status 500)" in done.out
    assert done.err.endswith("no request was answered: the server answers 500: oops\n")


def test_chat_writes_words_and_goes_on_from_text() -> None:
    wire = Chat((" one", " two", " three"))
    first = wire.start([0, 2])
    assert first == [{"role": "user", "content": " one three"}]
    second = wire.go_on(first, Answer(sent_s=0.0, ended_s=0.0, text="four"), [1])
    assert second == [*first, {"role": "assistant", "content": "four"}, {"role": "user", "content": " two"}]
    body = json.loads(wire.body(Asking(model="m", pinned=False), second, 7))
    assert (body["messages"], body["max_tokens"], "ignore_eos" in body) == (second, 7, False)


def test_chat_takes_the_words_of_one_token() -> None:
    """A made-up tokenizer of letters' pairs: its words are ` aa` to ` jj`."""
    words = [f" {a}{b}" for a in "abcdefghij" for b in "abcdefghij"]

    class Pairs:
        def encode(self, text: str) -> list[int]:
            return [words.index(text)] if text in words else [0, 0]

        def decode(self, token_ids: list[int]) -> str:
            return "".join([*words, "X", " Up", "1"][token] for token in token_ids)

    assert chat_words(Pairs(), 103) == tuple(words)
    with pytest.raises(KvtoolError, match="has only 10 words of one token"):
        chat_words(Pairs(), 10)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--batch-size", "4"), "--batch-size says nothing of a server"),
        (("--pool-tokens", "4k"), "--pool-tokens says nothing of a server"),
        (("--dtype", "fp32"), "--dtype says nothing of a server"),
        (("--peers", "vllm"), "beside a server only kvtool runs"),
        (("--num-prompts", "2000"), "are more than 1000 connections"),
        (("--timeout", "0"), "--timeout 0 must be above 0"),
        (("--chat",), "--chat makes prompts of words"),
        ((), "the key is missing or wrong (--api-key-env)"),
    ],
)
def test_wrong_use_is_one_line(
    fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], words: str
) -> None:
    done = run(capsys, monkeypatch, "bench", "--url", fake.url, *more)
    assert done.code in (2, 3)
    assert words in done.err
    assert done.err.count("\n") == 1


def test_a_server_needs_its_url(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(capsys, monkeypatch, "bench", "--reset-cache")
    assert (done.code, done.err) == (2, "kvtool: --reset-cache is about a server: name its --url\n")


def test_our_own_engine_runs_the_same_plan() -> None:
    """Conversations, whose later turns wait for earlier ones, and priming included."""
    model = TINY
    for scenario in ("multi-turn", FIXED):
        options = small(
            scenarios=(scenario,) if scenario != FIXED else (), hit_rates=(0.5,), concurrency=2, block_size=16
        )
        server = Server(engine="other", version=None, model="tiny")
        plan = options.plan(options.grid[0], server, model.vocab_size or 0, 0)
        own = run_own(model, EngineConfig(dtype="fp32", device="cpu", threads=1), plan, options)
        assert own.ttft_ms > 0
        assert own.tpot_ms is not None
        assert own.tpot_ms > 0
