"""Why tokens missed: of a trace by its block ids, of a log or of prompts by their text."""

from __future__ import annotations

from collections.abc import Sequence

from kvtool.catalog.model import Model
from kvtool.replay.loops.fastest import core
from kvtool.replay.misses.hashed import trace_misses
from kvtool.replay.misses.logged import CHARACTERS_A_TOKEN, LogMisses, Reading
from kvtool.replay.misses.losses import Losses
from kvtool.replay.misses.unit import planned_unit
from kvtool.replay.saved import PrefillFloor
from kvtool.results import TraceDocument
from kvtool.system.errors import KvtoolError
from kvtool.workloads.logs.entries import LogEntry
from kvtool.workloads.traces import Trace, TraceRequest
from kvtool.workloads.traces.summary import Sums

LEAST_TOKENS = 16  # of a request, below which a loss is not worth a line


def misses_of_trace(trace: Trace, *, capacity: int | None = None, floor: PrefillFloor | None = None) -> TraceDocument:
    """What a cache with LRU and room for `capacity` blocks (None: no limit) misses. Raises KvtoolError."""
    losses, sums = Losses(floor), Sums()
    trace_misses(trace, losses, core(), capacity=capacity, least=LEAST_TOKENS)
    for request in trace:
        sums.add(request)
    room = "without a limit" if capacity is None else f"of {capacity:,} blocks"
    return TraceDocument(
        trace=sums.summary(trace.name, trace.format.name, trace.sha256),
        findings=losses.findings(),
        missed_tokens=losses.missed,
        assumptions=[
            f"the cache is an LRU {room} that keeps prompts; answers are not kept",
            "block ids tell that a prefix changed, not what in it did: that a log with its text tells",
        ],
    )


def misses_of_log(
    name: str,
    sha256: str,
    entries: Sequence[LogEntry],
    reading: Reading,
    *,
    block_size: int,
    match_unit: int | None = None,
    model: Model | None = None,
    floor: PrefillFloor | None = None,
) -> TraceDocument:
    """What keeps the prompts of a log from sharing more, each against the earlier one most like it.

    `match_unit` (tokens) is what a hit is a multiple of, where that is more than a block; else the plan of `model` says
    it, and without one a block. Raises KvtoolError.
    """
    if not entries:
        raise KvtoolError(f"{name} has no requests")
    if block_size < 1 or (match_unit is not None and match_unit < 1):
        raise KvtoolError(f"--block-size {block_size} and --match-unit {match_unit} must be 1 token or more")
    planned = match_unit is None and model is not None
    unit = planned_unit(model, block_size) if match_unit is None and model is not None else match_unit or block_size
    losses, sums = Losses(floor), Sums()
    misses = LogMisses(losses, least=LEAST_TOKENS, unit=unit)
    misses.see(entries, reading)
    for entry in entries:
        sums.add(TraceRequest(entry.line, entry.arrival_s, 0, entry.output_tokens, block_size, []))
    sums.input_tokens, sums.block_size = losses.prompt_tokens, block_size
    assumed = ["a prompt could share what an earlier one has, in the order of lines, and nothing is evicted"]
    if planned and model is not None and unit > block_size:
        assumed.append(
            f"a hit is a multiple of {unit:,} tokens, as vLLM plans {model.id} with prefix caching on one GPU"
        )
    if reading.encode is None:
        assumed.append(f"a token is {CHARACTERS_A_TOKEN} characters: --tokenizer FOLDER counts them")
    if any(entry.messages is not None for entry in entries) and reading.encode is None:
        assumed.append(
            "chats are laid out plainly, tools before messages: --tokenizer FOLDER applies the model's template"
        )
    return TraceDocument(
        trace=sums.summary(name, "log", sha256),
        findings=losses.findings(),
        missed_tokens=losses.missed,
        assumptions=assumed,
    )
