"""Causes planted into generated logs are found and named, each alone, and none where there is none."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from kvtool.replay.misses.logged import Reading
from kvtool.replay.misses.misses import misses_of_log, misses_of_trace
from kvtool.results import TraceDocument
from kvtool.workloads.logs.entries import LogEntry
from kvtool.workloads.logs.layout import plain_layout
from kvtool.workloads.traces import open_trace

WORDS = ("cache", "page", "block", "token", "prefix", "model", "layer", "memory", "tier", "node", "queue", "kernel")
NAMES = ("Ada", "Grace", "Edsger", "Barbara", "Tony", "Leslie")
ACCENTED = ("e\N{COMBINING ACUTE ACCENT}", "\N{LATIN SMALL LETTER E WITH ACUTE}")
REQUESTS = 6


def sentence(rng: random.Random, words: int = 12) -> str:
    return " ".join(rng.choices(WORDS, k=words)).capitalize() + "."


def passage(rng: random.Random, sentences: int = 6) -> str:
    return " ".join(sentence(rng) for _ in range(sentences))


FIXED = random.Random(1)
RULES = "\n".join(passage(FIXED) for _ in range(3))
DOCUMENTS = [f"[{name}] {passage(FIXED)}" for name in ("alpha", "beta", "gamma")]
TOOLS = [
    {"type": "function", "function": {"name": name, "description": passage(FIXED, 2), "parameters": {"type": "object"}}}
    for name in ("search", "fetch", "run")
]
TURNS = [passage(FIXED, 3) for _ in range(9)]


def question(rng: random.Random) -> str:
    return f"User: {sentence(rng, 9)}"


def documents_of(n: int) -> list[str]:
    return DOCUMENTS[n % 3 :] + DOCUMENTS[: n % 3]


PLANTED: dict[str, Callable[[int, random.Random], str]] = {
    "timestamp": lambda n, r: f"Today is 2026-11-{10 + n}T08:{11 + n}:05Z.\n{RULES}\n{question(r)}",
    "uuid": lambda n, r: f"Request {uuid.UUID(int=r.getrandbits(128))}.\n{RULES}\n{question(r)}",
    "counter": lambda n, r: f"You are worker {7 + n} of a pool.\n{RULES}\n{question(r)}",
    "documents_order": lambda n, r: "\n\n".join(["Answer from these:", *documents_of(n), question(r)]),
    "white_space": lambda n, r: f"Rules:{' ' * (1 + n % 2)}\n{RULES}\n{question(r)}",
    "bos": lambda n, r: f"{'<s>' * (1 + n % 2)}Rules:\n{RULES}\n{question(r)}",
    "template": lambda n, r: f"{'<|im_start|>system' if n % 2 else '<|system|>'}\nRules:\n{RULES}\n{question(r)}",
    "letters": lambda n, r: f"{'RULES' if n % 2 else 'Rules'} for caf{ACCENTED[n % 2]}:\n{RULES}\n{question(r)}",
    "truncated_history": lambda n, r: "\n".join([RULES, *TURNS[n : n + 4]]),
    "inserted_text": lambda n, r: "\n".join(["Rules:", *TURNS[:n], RULES, question(r)]),
    "changed_text": lambda n, r: f"You help {NAMES[n]} today.\n{RULES}\n{question(r)}",
}  # fmt: skip


def found(entries: list[LogEntry], **more: int) -> TraceDocument:
    return misses_of_log("log", "", entries, Reading(plain_layout), **{"block_size": 16, **more})  # type: ignore[arg-type]


def texts(make: Callable[[int, random.Random], str], seed: int) -> list[LogEntry]:
    rng = random.Random(seed)
    return [LogEntry(line=n + 1, text=make(n, rng)) for n in range(REQUESTS)]


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_cause_is_named_and_costs_what_stands_behind_it(kind: str, seed: int) -> None:
    document = found(texts(PLANTED[kind], seed))
    assert {finding.kind for finding in document.findings} == {kind}
    lost = sum(finding.tokens_lost or 0 for finding in document.findings)
    assert lost == document.missed_tokens["changed_prefix"]
    assert sum(document.missed_tokens.values()) == document.trace.input_tokens
    behind = len(TURNS[0]) if kind == "truncated_history" else len(RULES) if kind != "documents_order" else 900
    assert lost > behind / 4  # a token is four characters, and one request or more lost all that is fixed


def test_tools_in_another_order_are_named_so() -> None:
    rng = random.Random(2)
    entries = [
        LogEntry(
            line=n + 1, tools=TOOLS[n % 3 :] + TOOLS[: n % 3], messages=[{"role": "user", "content": question(rng)}]
        )
        for n in range(REQUESTS)
    ]
    assert {finding.kind for finding in found(entries).findings} == {"tools_order"}


def test_two_causes_in_one_prompt_are_told_apart() -> None:
    entries = [
        LogEntry(line=n, text=f"It is {n + 9}:30.\n{RULES}\nWorker {n} says:\n{TURNS[0]}\n{TURNS[1]}") for n in (1, 2)
    ]
    assert [finding.kind for finding in found(entries).findings] == ["timestamp", "counter"]


def test_nothing_is_found_where_nothing_is_lost() -> None:
    def shared(n: int, rng: random.Random) -> str:
        return f"Rules:\n{RULES}\n{question(rng)}"

    def growing(n: int, rng: random.Random) -> str:
        return "\n".join([RULES, *TURNS[: n + 1]])

    def unlike(n: int, rng: random.Random) -> str:
        return passage(rng, 20)

    for make in (shared, growing, unlike):
        assert found(texts(make, 5)).findings == []


def test_less_than_a_match_unit_is_shared_for_nothing() -> None:
    """Hybrids match in units of 784 or 1,600 tokens: vLLM rounds a block of attention up to a state's bytes."""
    entries = texts(lambda n, rng: f"Rules:\n{RULES}\n{question(rng)}", 3)
    assert found(entries).findings == []
    document = found(entries, match_unit=1600)
    assert {finding.kind for finding in document.findings} == {"match_unit"}
    assert document.missed_tokens["hit"] == 0


def test_token_ids_need_no_tokenizer() -> None:
    fixed = list(range(1000, 1200))
    document = found([LogEntry(line=1, token_ids=[1, *fixed]), LogEntry(line=2, token_ids=[2, *fixed])])
    (finding,) = document.findings
    assert (finding.kind, finding.tokens_lost) == ("changed_text", 200)


def test_where_a_traces_tokens_went(tmp_path: Path) -> None:
    """Sessions s and t in blocks of 4, room for 3 blocks. Line 2 goes on behind a block tail, line 4 finds its
    blocks evicted, line 5 is s with another head in front of blocks that were seen.
    """
    lines = [
        (10, [1, 2, 3], "s"),
        (14, [1, 2, 4, 5], "s"),
        (8, [6, 7], "t"),
        (14, [1, 2, 4, 5], "u"),
        (12, [9, 2, 4], "s"),
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {"timestamp": n, "input_length": length, "hash_ids": ids, "block_size": 4, "session_id": session}
            )
            + "\n"
            for n, (length, ids, session) in enumerate(lines)
        )
    )
    document = misses_of_trace(open_trace(path), capacity=3)
    assert sum(document.missed_tokens.values()) == sum(length for length, *_ in lines)
    # line 2: blocks 1 and 2 hit, 2 tokens of block 3 are the tail; line 4: 8 of 14 tokens wait behind what t evicted
    assert document.missed_tokens["hit"] + document.missed_tokens["evicted"] == 8 + 14
    assert document.missed_tokens["block_tail"] == 2
    assert document.missed_tokens["changed_prefix"] == 8
    assert {finding.kind for finding in misses_of_trace(open_trace(path)).findings} == {"block_tail"}
