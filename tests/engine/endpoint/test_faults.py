"""Whatever a server does wrong is one word to count and one line to read, and never an exception of ours."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from kvtool.engine.endpoint import exchange
from kvtool.engine.endpoint.address import parse_address
from kvtool.engine.endpoint.answer import Answer, read_answer
from kvtool.engine.endpoint.client import Client
from kvtool.engine.endpoint.faults import EndpointError
from kvtool.engine.endpoint.server import discover
from tests.engine.endpoint.fake import DONE, Asked, Events, Fake, event, serving, token, usage

BODY = b'{"prompt": [1, 2, 3], "max_tokens": 2}'
SECRET = "sk-very-secret"


def ask(fake: Fake, *, timeout_s: float = 10.0, key: str | None = None) -> Answer:
    client = Client(parse_address(fake.url), key=key, timeout_s=timeout_s)
    try:
        return read_answer(client.stream("/v1/completions", BODY))
    finally:
        client.close()


def saying(*events: bytes | None, status: int = 200, **headers: str) -> Fake:
    return Fake(answer=lambda asked, number: (status, headers, events))


def endless() -> Iterator[bytes]:
    while True:
        yield token("a" * 1000)


@pytest.mark.parametrize(
    ("fake", "kind", "words"),
    [
        (saying(b'{"error": {"message": "slow down"}}', status=429), "status 429", "answers 429: slow down"),
        (saying(b'{"detail": "no key"}', status=401), "status 401", "the key is missing or wrong (--api-key-env): no"),
        (saying(b'{"message": "no model x"}', status=404), "status 404", "answers 404: no model x"),
        (saying(b"<html>\x1b[31m bad gateway", status=502), "status 502", "answers 502: <html>\\x1b[31m bad gateway"),
        (saying(token(), b"data: {not json}\n\n"), "json", "an event that is no chunk"),
        (saying(token(), b'data: {"choices": 7}\n\n'), "json", "Expected `array`, got `int`"),
        (saying(token(), b'data: {"choices":[{"text":"\xff\xfe"}]}\n\n'), "encoding", "bytes that are no UTF-8"),
        (saying(event(error={"message": "out of memory"})), "server", "the server broke off: out of memory"),
        (saying(DONE), "empty", "ended without a token"),
        (saying(), "empty", "ended without a token"),
        (saying(token(finish="length"), DONE), "no usage", "the server counts no tokens"),
        (saying(token(), token()), "cut", "ended after 2 events, before it was finished"),
        (saying(token(), None), "closed", "closed the connection before its answer was whole"),
    ],
)
def test_each_fault_has_a_word_and_a_line(fake: Fake, kind: str, words: str) -> None:
    with serving(fake):
        fault = ask(fake).fault
    assert fault is not None
    assert fault.kind == kind
    assert words in str(fault)
    assert "\n" not in str(fault)
    assert str(fault).isprintable()


def test_a_stream_without_an_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MOST_BYTES", 50_000)
    fake = Fake(answer=lambda asked, number: (200, {}, endless()))
    with serving(fake):
        answer = ask(fake)
    assert answer.fault is not None
    assert answer.fault.kind == "endless"
    assert len(answer.token_s) > 40


def test_a_server_that_does_not_go_on_is_left_at_the_deadline() -> None:
    released = threading.Event()

    def stalling() -> Iterator[bytes]:
        yield token()
        released.wait()

    fake = Fake(answer=lambda asked, number: (200, {}, stalling()))
    with serving(fake):
        answer = ask(fake, timeout_s=0.05)
        released.set()
    assert answer.fault is not None
    assert (answer.fault.kind, str(answer.fault)) == ("timeout", "no whole answer within 0.05 s (--timeout)")
    assert len(answer.token_s) == 1


def test_a_stream_that_is_done_but_stays_open_is_whole() -> None:
    """Some routers keep the connection: what came is whole, and the connection is not used again."""
    released = threading.Event()

    def open_ended() -> Iterator[bytes]:
        yield from (token(), token(finish="length"), usage(3, 2), DONE)
        released.wait()

    fake = Fake(answer=lambda asked, number: (200, {}, open_ended()))
    with serving(fake):
        answer = ask(fake)
        released.set()
    assert answer.fault is None
    assert (answer.output_tokens, answer.text) == (2, "aa")


def test_nobody_there() -> None:
    with serving(Fake()) as fake:
        gone = fake.url
    client = Client(parse_address(gone))
    fault = read_answer(client.stream("/v1/completions", BODY)).fault
    assert fault is not None
    assert (fault.kind, str(fault)) == ("unreachable", f"no server answers at {gone}: Connection refused")


def test_the_key_goes_to_no_other_host_and_into_no_words() -> None:
    with serving(Fake()) as other:
        away = {"Location": f"{other.url}/v1/completions"}
        with serving(Fake(answer=lambda asked, number: (307, away, ()))) as fake:
            fault = ask(fake, key=SECRET).fault
        assert other.asked == []
    assert fault is not None
    assert fault.kind == "redirect"
    assert f"redirects to {other.url}, where nothing was sent" in str(fault)
    told = saying(f'{{"error": "bad key {SECRET}"}}'.encode(), status=401)
    broken = saying(event(error=f"you sent {SECRET}"))
    for fake in (told, broken):
        with serving(fake):
            assert SECRET not in str(ask(fake, key=SECRET).fault)
            assert fake.asked[0].headers["authorization"] == f"Bearer {SECRET}"


def test_a_redirect_on_the_same_server_is_followed() -> None:
    def moving(asked: Asked, number: int) -> tuple[int, dict[str, str], Events]:
        if asked.path == "/v1/completions":
            return 307, {"Location": "/moved/v1/completions?a=1"}, ()
        return 200, {}, (token(), token(finish="length"), usage(3, 2), DONE)

    with serving(Fake(answer=moving)) as fake:
        assert ask(fake, key=SECRET).fault is None
        assert [one.path for one in fake.asked] == ["/v1/completions", "/moved/v1/completions?a=1"]
    with serving(Fake(answer=lambda asked, number: (308, {"Location": asked.path}, ()))) as fake:
        fault = ask(fake).fault
        assert fault is not None
        assert str(fault) == f"{fake.url} redirects in a circle"
    with serving(Fake(answer=lambda asked, number: (302, {"Location": "/x"}, ()))) as fake:
        fault = ask(fake).fault
        assert fault is not None
        assert "by a 302, which drops the body" in str(fault)


def test_a_connection_that_the_server_closed_is_not_the_requests_fault() -> None:
    """A server may close a connection that waits: the next request takes a new one."""
    fake = Fake(
        answer=lambda asked, number: (200, {"Connection": "keep-alive"}, (token(finish="length"), usage(3, 1), DONE))
    )
    with serving(fake):
        client = Client(parse_address(fake.url))
        assert read_answer(client.stream("/v1/completions", BODY)).fault is None
        (kept,) = client._idle
        kept.sock.close()
        kept.sock = _Gone()
        assert read_answer(client.stream("/v1/completions", BODY)).fault is None
        client.close()


class _Gone:
    """A socket whose other end is closed."""

    def settimeout(self, seconds: float) -> None:
        return

    def sendall(self, data: bytes) -> None:
        raise BrokenPipeError

    def close(self) -> None:
        return


def test_what_is_no_server_of_models() -> None:
    class Empty(Fake):
        def pages(self) -> dict[str, tuple[str, str]]:
            return {"/v1/models": ("application/json", '{"data": []}')}

    with serving(Empty()) as fake, pytest.raises(EndpointError, match="lists no model"):
        discover(Client(parse_address(fake.url)))
