"""Conversations: each turn goes on from the whole transcript before it, the model's real answers included."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from kvtool.system.errors import KvtoolError
from kvtool.workloads.prompts import distinct_tokens, random_tokens
from kvtool.workloads.scenarios.base import Plan, Shape, Turn, unreachable

TURNS = 4
SYSTEM_SHARE = 1 / 4  # of the longest prompt, where the user does not say


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation: `start_ids` are cached before it begins, then one prompt of each length comes in, of which the
    model answers with as many tokens as `output_lens` says."""

    start_ids: tuple[int, ...]
    prompt_lens: Sequence[int]
    output_lens: Sequence[int]


def multi_turn(shape: Shape) -> Plan:
    """Chats behind one system prompt, which was cached before."""
    turns = min(TURNS, shape.num_prompts)
    count = shape.num_prompts // turns
    rng = random.Random(f"multi-turn {shape.seed}")
    start_len, lengths = session_lengths(shape, "multi-turn", count=count, turns=turns)
    start = random_tokens(rng, start_len, shape.vocab_size)
    answers = [shape.output_len] * len(lengths[0])
    return converse(shape, [Session(start, own, answers) for own in lengths], rng)


def session_lengths(shape: Shape, name: str, *, count: int, turns: int) -> tuple[int, list[list[int]]]:
    """Tokens that are cached before, and the prompt lengths of each of `count` conversations of `turns` turns."""
    if shape.hit_rate is not None:
        return lengths_at_rate(shape, name, count=count, turns=turns)
    start_len = shape.shared_len(SYSTEM_SHARE)
    said = (shape.input_len - start_len - (turns - 1) * shape.output_len) // turns
    if said < 1:
        raise KvtoolError(
            f"{turns} turns behind {start_len} tokens, with answers of {shape.output_len}, do not fit into prompts of "
            f"{shape.input_len} tokens: make --input-len longer or --output-len shorter"
        )
    lengths = [start_len + said * (turn + 1) + shape.output_len * turn for turn in range(turns)]
    return start_len, [lengths] * count


def lengths_at_rate(shape: Shape, name: str, *, count: int, turns: int) -> tuple[int, list[list[int]]]:
    """The same where every prompt is as long as makes its cached part the share asked for: of most turns, and of the
    longest start, whose last prompt is not longer than `input_len`."""
    rate = shape.hit_rate
    if not rate:
        return 0, [[shape.input_len]] * count
    longest = shape.whole_pages(rate * shape.input_len)
    given = None if shape.prefix_len is None else shape.whole_pages(shape.prefix_len)
    starts = range(longest, 0, -shape.block_size) if given is None else [given] if 0 < given <= longest else []
    for num_turns in range(turns, 0, -1):
        for start_len in starts:
            lengths = _growing(shape, rate, start_len, count=count, turns=num_turns)
            if lengths is not None:
                return start_len, lengths
    raise unreachable(name, shape, f"no conversation of up to {shape.input_len} tokens has it to the page")


def _growing(shape: Shape, rate: float, start_len: int, *, count: int, turns: int) -> list[list[int]] | None:
    """Lengths turn by turn, rounded so that the sums keep to the rate; None where a prompt would be too long, or not
    longer than what it goes on from."""
    lengths: list[list[int]] = [[] for _ in range(count)]
    hits = prompts = 0
    for turn in range(turns):
        for own in lengths:
            before = own[-1] + shape.output_len if turn else start_len
            hits += shape.whole_pages(before - 1 if turn else before)
            own.append(round(hits / rate) - prompts)
            prompts += own[-1]
            if not before < own[-1] <= shape.input_len:
                return None
    return lengths


def converse(shape: Shape, sessions: Sequence[Session], rng: random.Random) -> Plan:
    """All first turns, then all second ones and so on; each waits for the one before it in its session."""
    first_ids = distinct_tokens(rng, len(sessions) + 1, shape.vocab_size)
    turns: list[Turn] = []
    latest: dict[int, int] = {}
    for number in range(max(len(session.prompt_lens) for session in sessions)):
        for place, session in enumerate(sessions):
            if number < len(session.prompt_lens):
                turns.append(_turn(shape, session, number, latest.get(place), first_ids[place], rng))
                latest[place] = len(turns) - 1
    starts = dict.fromkeys(session.start_ids for session in sessions if session.start_ids)
    return Plan(turns=tuple(turns), priming=tuple((*start, first_ids[-1]) for start in starts))


def _turn(
    shape: Shape, session: Session, number: int, after: int | None, first_id: int, rng: random.Random
) -> Turn:  # fmt: skip
    length = session.prompt_lens[number]
    if number == 0:
        before, written = len(session.start_ids), len(session.start_ids)
        opening = (*session.start_ids, first_id)
    else:
        before = session.prompt_lens[number - 1] + session.output_lens[number - 1]
        written, opening = before - 1, ()  # the last token of an answer is never written
    own_len = length - before - (1 if number == 0 else 0)
    return Turn(
        own_ids=(*opening, *random_tokens(rng, own_len, shape.vocab_size)),
        output_len=session.output_lens[number],
        prompt_tokens=length,
        cached_tokens=shape.whole_pages(min(written, length - 1)),
        after=after,
        continues=number > 0,
        think_s=rng.expovariate(1 / shape.think_s) if number and shape.think_s else 0.0,
    )
