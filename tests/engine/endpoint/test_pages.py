"""What servers say of themselves: addresses, events, counters, discovery."""

from __future__ import annotations

from http.client import HTTPException

import pytest

from kvtool.engine.endpoint.address import parse_address, read_key
from kvtool.engine.endpoint.answer import read_answer
from kvtool.engine.endpoint.chunks import Chunks
from kvtool.engine.endpoint.client import Client, Stream
from kvtool.engine.endpoint.prometheus import counted, parse_page
from kvtool.engine.endpoint.server import discover
from kvtool.engine.endpoint.sse import events
from kvtool.system.errors import KvtoolError
from tests.engine.endpoint.fake import Fake, serving


@pytest.mark.parametrize(
    ("url", "origin", "path"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000", ""),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000", ""),
        ("https://api.example.com/openai/v1", "https://api.example.com:443", "/openai"),
        ("http://[::1]:30000", "http://[::1]:30000", ""),
    ],
)
def test_addresses(url: str, origin: str, path: str) -> None:
    address = parse_address(url)
    assert (address.origin, address.path) == (origin, path)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("127.0.0.1:8000", "names no server: write http://127.0.0.1:8000"),
        ("ftp://host", "names no server"),
        ("http://host:99999", "is none (Port out of range"),
        ("http://me:secret@host", "the url of host holds a password"),
        ("http://host/?key=secret", "has a query"),
    ],
)
def test_what_is_no_address(url: str, words: str) -> None:
    with pytest.raises(KvtoolError) as told:
        parse_address(url)
    assert words in str(told.value)
    assert "me:secret" not in str(told.value)


def test_the_key_is_never_in_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", " sk-1 \n")
    assert read_key("KEY") == "sk-1"
    monkeypatch.setenv("KEY", "sk-secret\r\nX-Other: 1")
    with pytest.raises(KvtoolError, match="characters that no HTTP header may") as told:
        read_key("KEY")
    assert "secret" not in str(told.value)
    with pytest.raises(KvtoolError, match="no such variable"):
        read_key("KVTOOL_NO_SUCH_KEY")


def test_events_are_cut_anywhere() -> None:
    text = b': ping\r\n\r\ndata: {"a":1}\r\n\r\nevent: x\ndata: one\ndata: two\n\ndata: [DONE]'
    whole = [data for _, data in events([(0.0, text)])]
    assert whole == [b'{"a":1}', b"one\ntwo", b"[DONE]"]
    for cut in range(len(text)):
        assert [data for _, data in events([(0.0, text[:cut]), (1.0, text[cut:])])] == whole
    bytewise = [(float(i), text[i : i + 1]) for i in range(len(text))]
    times = {data: time_s for time_s, data in events(bytewise)}
    assert times[b'{"a":1}'] == text.index(b'{"a":1}\r\n\r\n') + len(b'{"a":1}\r\n\r\n') - 1  # its empty line's end


# As vLLM 0.32.0 answers a chat of three tokens, and llama.cpp a completion, whose last event has no token.
VLLM_CHAT = (
    b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null,"token_ids":null}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{"content":" there"},"finish_reason":null}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{"content":"!"},"finish_reason":"length","stop_reason":null}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":31,"total_tokens":34,"completion_tokens":3,'
    b'"prompt_tokens_details":{"cached_tokens":16,"created_cache_tokens":0}}}\n\n',
    b"data: [DONE]\n\n",
)
LLAMA_CPP = (
    b'data: {"choices":[{"text":"a","index":0,"logprobs":null,"finish_reason":null}]}\n\n',
    b'data: {"choices":[{"text":"","index":0,"logprobs":null,"finish_reason":null}]}\n\n',  # half a character
    b'data: {"choices":[{"text":"","index":0,"logprobs":null,"finish_reason":"length"}],'
    b'"usage":{"completion_tokens":2,"prompt_tokens":8,"prompt_tokens_details":{"cached_tokens":7}}}\n\n',
    b"data: [DONE]\n\n",
)


@pytest.mark.parametrize(
    ("pieces", "at_s", "text", "counts"),
    [(VLLM_CHAT, [1.0, 2.0, 3.0], "Hello there!", (31, 3, 16)), (LLAMA_CPP, [0.0, 1.0], "a", (8, 2, 7))],
)
def test_tokens_are_events_with_text_and_counts_are_usage(
    pieces: tuple[bytes, ...], at_s: list[float], text: str, counts: tuple[int, int, int]
) -> None:
    answer = read_answer(Stream(0.0, [(float(number), piece) for number, piece in enumerate(pieces)]))
    assert answer.fault is None
    assert (answer.token_s, answer.text) == (at_s, text)
    assert (answer.prompt_tokens, answer.output_tokens, answer.cached_tokens) == counts


def test_counters_of_each_engine() -> None:
    before = parse_page("llamacpp:prompt_tokens_total 100\nllamacpp:prompt_tokens_cached_total 5\n")
    after = parse_page("# TYPE x counter\nllamacpp:prompt_tokens_total 140\nllamacpp:prompt_tokens_cached_total 65\n")
    found = counted("llama.cpp", before, after)
    assert (found.prompt_tokens, found.hit_tokens, found.preemptions) == (100, 60, None)
    # SGLang's counter of cached tokens has labels, so that it is not there before its first count.
    before = parse_page('sglang:prompt_tokens_total{is_streaming="true"} 64.0\n')
    after = parse_page(
        'sglang:prompt_tokens_total{is_streaming="true"} 128.0\n'
        'sglang:cached_tokens_total{cache_source="device"} 30.0\nsglang:cached_tokens_total{cache_source="host"} 2.0\n'
    )
    assert counted("sglang", before, before).hit_tokens == 0
    assert counted("sglang", before, after).hit_tokens == 32
    assert counted("sglang", after, before).prompt_tokens is None  # it was started again
    assert counted("other", before, after).prompt_tokens is None


def test_a_page_of_anything() -> None:
    page = parse_page('a{x="1",y="q\\"uote"} 1\na{x="2"} 2 1700000000\nb NaN\nc +Inf\nd{} x\n}{\n e 1\n')
    assert page.values["a"] == 3
    assert page.labels["a"] == {"x": "1", "y": 'q\\"uote'}
    assert set(page.values) == {"a"}


def test_a_server_says_what_it_is() -> None:
    with serving(Fake(block_tokens=128)) as fake:
        server = discover(Client(parse_address(fake.url)))
        assert (server.engine, server.version, server.model) == ("vllm", "0.32.0", "smollm2-135m")
        assert (server.block_tokens, server.max_model_len, server.prefix_caching) == (128, 8192, True)
        with pytest.raises(KvtoolError, match="does not serve 'smollm2', but smollm2-135m: did you mean"):
            discover(Client(parse_address(fake.url)), "smollm2")


def test_hits_of_a_hybrid_land_on_larger_blocks() -> None:
    class Hybrid(Fake):
        def page(self) -> str:
            return 'vllm:cache_config_info{block_size="16",cache_hit_alignment_tokens="784"} 1.0\n'

    with serving(Hybrid()) as fake:
        client = Client(parse_address(fake.url))
        assert discover(client).block_tokens == 784
        client.close()


def test_chunks_are_cut_anywhere() -> None:
    """Every cut in two, and byte by byte, gives the body; a line behind it is another answer's."""
    raw = b'5\r\ndata:\r\n10;name="x"\r\n{"a":"\r\n0\r\n\r\n"}\n\r\nA \r\n0123456789\r\n0\r\nExpires: 0\r\n\r\n'
    body = b'data:{"a":"\r\n0\r\n\r\n"}\n0123456789'
    for cut in range(len(raw)):
        chunks = Chunks()
        assert chunks.take(raw[:cut]) + chunks.take(raw[cut:]) == body, cut
        assert chunks.ended
    chunks = Chunks()
    assert b"".join(chunks.take(raw[at : at + 1]) for at in range(len(raw))) == body
    assert chunks.ended


@pytest.mark.parametrize("raw", [b"x\r\n", b"\r\n", b"-1\r\n", b"1_0\r\n", b"1\r\nab\r\n", b"1" * 5000])
def test_what_is_no_chunk(raw: bytes) -> None:
    with pytest.raises(HTTPException):
        Chunks().take(raw)
