"""What this client takes of a request: its time to a server of its own process tree that answers at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from kvtool.bench.engines.server.drive import Driver
from kvtool.engine.endpoint import null
from kvtool.engine.endpoint.address import parse_address
from kvtool.engine.endpoint.client import Client
from kvtool.engine.endpoint.wire import Asking, Completions
from kvtool.workloads import fixed, random_arrivals
from kvtool.workloads.scenarios.base import Plan, Turn

REQUESTS, RATE_PER_S = 100, 200.0
INPUT_LEN, OUTPUT_LEN = 512, 32


@contextmanager
def null_server() -> Iterator[str]:
    """The URL of a server in a process of its own, that answers every request at once with OUTPUT_LEN tokens."""
    command = [sys.executable, "-S", "-E", str(Path(null.__file__)), str(OUTPUT_LEN)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def client_overhead_ms() -> float | None:
    """The median time of a request, sent to received, at RATE_PER_S of them: what is the null server's is in it. None
    where no such server can be started."""
    try:
        with null_server() as url:
            return round(1e3 * median(overheads_s(url)), 4)
    except (OSError, ValueError):
        return None


def overheads_s(url: str) -> list[float]:
    """Of each request, from when it was due until its last byte."""
    client = Client(parse_address(url), timeout_s=10.0)
    driver = Driver(client=client, wire=Completions(1 << 16), asking=Asking(model="null"))
    driven = driver.drive(_plan(), by_clock=True)
    client.close()
    return [one.answer.ended_s - one.start_s - one.in_s for one in driven.whole][REQUESTS // 10 :]


def _plan() -> Plan:
    requests = fixed(
        batch_size=REQUESTS,
        input_len=INPUT_LEN,
        output_len=OUTPUT_LEN,
        vocab_size=Completions(1 << 16).vocab_size,
        seed=0,
    )
    timed = random_arrivals(requests, RATE_PER_S, seed=0)
    return Plan(
        turns=tuple(
            Turn(
                own_ids=request.prompt_ids,
                output_len=OUTPUT_LEN,
                prompt_tokens=INPUT_LEN,
                cached_tokens=0,
                arrival_s=request.arrival_s,
            )
            for request in timed
        )
    )
