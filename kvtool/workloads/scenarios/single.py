"""Many requests about one text: a user's history before each of N items (ranking), n answers to one prompt (parallel),
and one document changed at one place (edit)."""

from __future__ import annotations

import random

from kvtool.system.errors import KvtoolError
from kvtool.workloads.prompts import distinct_tokens, random_tokens
from kvtool.workloads.scenarios.base import Plan, Shape, Turn, spread, unreachable

HISTORY_SHARE = 3 / 4  # of the longest prompt, where the user does not say


def ranking(shape: Shape) -> Plan:
    """One user's history before each of N items: the first computes it, the others wait for that and find it."""
    rng = random.Random(f"ranking {shape.seed}")
    count, vocab = shape.num_prompts, shape.vocab_size
    history_len = _history_len(shape)
    history = random_tokens(rng, history_len, vocab)
    items = distinct_tokens(rng, count, vocab)
    turns = (
        Turn(
            own_ids=(*history, item, *random_tokens(rng, length - history_len - 1, vocab)),
            output_len=shape.output_len,
            prompt_tokens=length,
            cached_tokens=history_len if place else 0,
            after=0 if place else None,
        )
        for place, (item, length) in enumerate(zip(items, _ranking_lengths(shape, history_len), strict=True))
    )
    return Plan(turns=tuple(turns))


def _history_len(shape: Shape) -> int:
    """In whole pages: as asked for, else what makes the hit rate with prompts of `input_len`."""
    if not shape.hit_rate:
        return 0 if shape.hit_rate == 0 else shape.shared_len(HISTORY_SHARE)
    most = (shape.num_prompts - 1) / shape.num_prompts
    if shape.hit_rate >= most:
        why = (
            f"the first of {shape.num_prompts} items finds nothing, which leaves {most:.4f}: rank more (--num-prompts)"
        )
        raise unreachable("ranking", shape, why)
    return shape.shared_len(shape.hit_rate / most)


def _ranking_lengths(shape: Shape, history_len: int) -> list[int]:
    count = shape.num_prompts
    if not shape.hit_rate:
        return [shape.input_len] * count
    total = round((count - 1) * history_len / shape.hit_rate)
    if total < count * (history_len + 1):
        why = f"no item fits behind a history of {history_len} tokens: make --input-len longer"
        raise unreachable("ranking", shape, why)
    return spread(total, count)


def parallel(shape: Shape) -> Plan:
    """All answers to one prompt: it is computed once, and each further answer copies the page that it writes to."""
    if shape.hit_rate is not None:
        raise unreachable("parallel", shape, "its answers share the whole prompt, so leave --hit-rate away")
    if shape.num_prompts > 1 and shape.output_len == 1:
        raise KvtoolError("parallel answers of one token never part: make --output-len 2 or more")
    rng = random.Random(f"parallel {shape.seed}")
    prompt = random_tokens(rng, shape.input_len, shape.vocab_size)
    turn = Turn(
        own_ids=prompt,
        output_len=shape.output_len,
        prompt_tokens=len(prompt),
        cached_tokens=0,
        answers=shape.num_prompts,
    )
    return Plan(turns=(turn,))


def edit(shape: Shape) -> Plan:
    """One long prompt, cached before, and copies of it with one token changed: all that stands behind is lost."""
    rng = random.Random(f"edit {shape.seed}")
    base = random_tokens(rng, shape.input_len, shape.vocab_size)
    places = _places(shape)
    turns: list[Turn] = []
    for place in places:
        others = [turn.own_ids[place] for turn in turns]
        changed = (*base[:place], _other_token(rng, shape.vocab_size, {base[place], *others}), *base[place + 1 :])
        turns.append(
            Turn(
                own_ids=changed, output_len=shape.output_len, prompt_tokens=shape.input_len, cached_tokens=place
            )
        )  # fmt: skip
    return Plan(turns=tuple(turns), priming=(base,))


def _places(shape: Shape) -> list[int]:
    """Of the change in each copy: the first token of a page, at even distances, or all where the hit rate asks."""
    count, last_page = shape.num_prompts, (shape.input_len - 1) // shape.block_size
    if shape.hit_rate is None:
        pages = [round((i + 1) * last_page / (count + 1)) for i in range(count)]
        return [page * shape.block_size for page in pages]
    wanted = round(shape.hit_rate * shape.input_len * count / shape.block_size)
    pages = spread(wanted, count)
    if max(pages) > last_page:
        most = last_page * shape.block_size / shape.input_len
        raise unreachable("edit", shape, f"a change in the last page leaves {most:.4f} of {shape.input_len} tokens")
    return [page * shape.block_size for page in pages]


def _other_token(rng: random.Random, vocab_size: int, taken: set[int]) -> int:
    """A token that is not one of the `taken` ones."""
    if len(taken) >= vocab_size:
        return distinct_tokens(rng, len(taken) + 1, vocab_size)[0]  # says what is wrong
    token = rng.randrange(vocab_size)
    return token if token not in taken else _other_token(rng, vocab_size, taken)
