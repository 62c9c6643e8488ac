"""What a reader of a server's figures must know: how it was asked, and what in its answers is not as it should be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvtool.bench.engines.server.options import FIXED, ServerOptions
from kvtool.engine.endpoint.server import Server
from kvtool.engine.endpoint.wire import Asking
from kvtool.results import EndpointCase

LATE_MS = 5.0


def said_of(server: Server, options: ServerOptions, asking: Asking) -> list[str]:
    """How the server was asked."""
    block = options.block_tokens(server)
    source = "as the server says" if server.block_tokens else "as --block-size says: the server does not"
    pinned = "ignore_eos and min_tokens pin the length of answers" if asking.pinned else (
        "the server takes neither ignore_eos nor min_tokens: answers may end early"
    )  # fmt: skip
    told = [
        f"requests are greedy and streamed; {pinned}; tokens are those of its usage, never events",
        f"prompts are {'words of one token each' if options.chat else 'random token ids'}, "
        + ("behind a reset cache" if options.reset_cache else "new in every run and iteration: nothing of them is warm")
        + f"; what they share is rounded down to blocks of {block} tokens, {source}",
        "a request that fails is counted, and in no time; it is not sent again",
    ]
    if server.prefix_caching is False:
        told.append("the server runs without prefix caching: it finds no hits")
    if options.gpu is not None:
        told.append(
            f"floor: bytes of a decode step / bandwidth of {options.gpu.name} as published, tp {options.tp}, "
            "weights and cache in the model's own dtype"
        )
    if any(scenario not in (FIXED,) for scenario in options.scenarios):
        told.append("several answers to one prompt are requests of their own")
    return told


def notes_of(cases: Sequence[EndpointCase]) -> list[str]:
    """What in the answers is not as it was asked for."""
    return [f"{case.name}: {note}" for case in cases for note in _notes(case)]


def _notes(case: EndpointCase) -> Iterator[str]:
    told = case.endpoint
    if told.errors:
        failed = ", ".join(f"{count} {kind}" for kind, count in told.errors.items())
        yield f"{sum(told.errors.values())} of {told.requests} requests failed ({failed}): {told.failures[0].text}"
    if not told.output_pinned and case.samples:
        yield "answers are not as long as asked for"
    if told.tokens_per_event is not None and told.tokens_per_event > 1.01:
        yield (
            f"an event brings {told.tokens_per_event:.2f} tokens on average: ITL is between events, and TPOT counts "
            "those of the first event as later ones"
        )
    if (
        None not in (told.usage_hit_tokens, told.metrics_hit_tokens)
        and told.usage_hit_tokens != told.metrics_hit_tokens
    ):
        yield f"usage tells of {told.usage_hit_tokens} hit tokens, /metrics of {told.metrics_hit_tokens}"
    if told.hits_exact and told.hit_source != "none" and told.hit_tokens != told.hit_tokens_expected:
        less = "the server evicted, or did not keep, what it had computed"
        more = "it knew these prompts already"
        why = more if told.hit_tokens > told.hit_tokens_expected else less
        yield f"{told.hit_tokens} hit tokens where {told.hit_tokens_expected} were made: {why}"
    if told.preemptions:
        yield f"the server preempted {told.preemptions} times"
    worst_ms = 1e3 * max((sample.queue_s or 0.0 for sample in case.samples), default=0.0)
    if worst_ms > LATE_MS:
        yield f"this client sent a request up to {worst_ms:.1f} ms after it was due, which is in its TTFT"
