"""An OpenAI-compatible server in this process, with a prefix cache of its own and whatever fault a test plants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Events = Iterable[bytes | None]
"""Bytes to send as they stand; None breaks the connection off."""


def event(**chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def token(text: str = "a", finish: str | None = None) -> bytes:
    return event(choices=[{"index": 0, "text": text, "finish_reason": finish}])


def usage(prompt: int, output: int, cached: int | None = None) -> bytes:
    details = None if cached is None else {"cached_tokens": cached}
    told = {"prompt_tokens": prompt, "completion_tokens": output, "prompt_tokens_details": details}
    return event(choices=[], usage=told)


DONE = b"data: [DONE]\n\n"


@dataclass
class Asked:
    """A request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Fake:
    """`answer` takes a request for tokens and its number; it says a status, headers and events. Every block of
    `block_tokens` of a prompt is cached once it was computed, as vLLM does it, and counted on /metrics."""

    block_tokens: int = 16
    tells_usage: bool = True
    tells_metrics: bool = True
    key: str | None = None
    model: str = "smollm2-135m"
    answer: Callable[[Asked, int], tuple[int, dict[str, str], Events]] | None = None
    asked: list[Asked] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("prompt", "hits", "preempted"), 0))
    lock: threading.Lock = field(default_factory=threading.Lock)
    cached: set[tuple[int, ...]] = field(default_factory=set)
    number: int = 0
    url: str = ""
    server: Any = None

    @property
    def completions(self) -> list[Asked]:
        return [one for one in self.asked if one.path.endswith("/completions")]

    def hit_tokens(self, prompt: list[int]) -> int:
        """Whole blocks that were computed before, the last token left out."""
        ends = range(self.block_tokens, len(prompt), self.block_tokens)
        return next((end - self.block_tokens for end in ends if tuple(prompt[:end]) not in self.cached), ends[-1])

    def keep(self, tokens: list[int]) -> None:
        """Whole blocks of what has been written."""
        ends = range(self.block_tokens, len(tokens) + 1, self.block_tokens)
        self.cached |= {tuple(tokens[:end]) for end in ends}

    def generate(self, asked: Asked) -> Events:
        """The answer of a server without a fault."""
        prompt, count = asked.body["prompt"], asked.body["max_tokens"]
        with self.lock:
            hit = self.hit_tokens(prompt) if len(prompt) > self.block_tokens else 0
            self.keep([*prompt, *[ord("a")] * (count - 1)])  # the last token is never written
            self.counters["prompt"] += len(prompt)
            self.counters["hits"] += hit
        yield from (token() for _ in range(count - 1))
        yield token(finish="length")
        yield usage(len(prompt), count, hit if self.tells_usage else None)
        yield DONE

    def page(self) -> str:
        told = self.counters
        return (
            f'vllm:cache_config_info{{block_size="{self.block_tokens}",enable_prefix_caching="True",'
            f'num_gpu_blocks="728",cache_dtype="auto"}} 1.0\n'
            f'vllm:prompt_tokens_total{{model_name="{self.model}"}} {told["prompt"]}.0\n'
            f"vllm:prefix_cache_hits_total {told['hits']}.0\n"
            f"vllm:num_preemptions_total {told['preempted']}.0\n"
        )

    def pages(self) -> dict[str, tuple[str, str]]:
        models = {"object": "list", "data": [{"id": self.model, "owned_by": "vllm", "max_model_len": 8192}]}
        found = {
            "/v1/models": ("application/json", json.dumps(models)),
            "/version": ("application/json", '{"version": "0.32.0"}'),
        }
        return found | ({"/metrics": ("text/plain", self.page())} if self.tells_metrics else {})

    def stop(self) -> None:
        """Listen no more; what is open stays open."""
        self.server.shutdown()
        self.server.socket.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: Fake

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        asked = self._taken()
        kind, text = self.fake.pages().get(asked.path, ("", ""))
        self._whole(200 if text else 404, kind, text.encode())

    def do_POST(self) -> None:
        asked = self._taken()
        fake = self.fake
        if fake.key is not None and asked.headers.get("authorization") != f"Bearer {fake.key}":
            self._whole(401, "application/json", b'{"error": {"message": "Incorrect API key provided"}}')
        elif asked.path == "/reset_prefix_cache":
            fake.cached.clear()
            self._whole(200, "application/json", b'{"success": true}')
        else:
            with fake.lock:
                fake.number += 1
                number = fake.number
            status, headers, events = (200, {}, None) if fake.answer is None else fake.answer(asked, number)
            self._stream(status, headers, fake.generate(asked) if events is None else events)

    def _taken(self) -> Asked:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, headers, json.loads(body) if body else {})
        self.fake.asked.append(asked)
        return asked

    def _whole(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, status: int, headers: dict[str, str], events: Events) -> None:
        self.send_response(status)
        for name, value in {"Transfer-Encoding": "chunked", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for piece in events:
                if piece is None:
                    self.close_connection = True
                    return
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        except OSError:  # the client has gone
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        return


@contextmanager
def serving(fake: Fake) -> Iterator[Fake]:
    """The fake, listening on this machine while the block runs."""
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": fake}))
    thread = threading.Thread(target=lambda: _serve(server), daemon=True)
    thread.start()
    fake.server, fake.url = server, f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield fake
    finally:
        if server.socket.fileno() >= 0:
            server.shutdown()
        server.socket.close()


def _serve(server: _Server) -> None:
    try:
        server.serve_forever(poll_interval=0.01)
    except (OSError, ValueError):  # it was told to stop listening
        return
