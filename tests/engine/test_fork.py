"""Several answers of one prompt: the same tokens as if each were alone, on shared pages."""

from __future__ import annotations

import pytest

from kvtool.engine.sequence import SamplingParams
from tests.engine.conftest import SaveTiny
from tests.engine.running import as_it_is, engine_of, generate, load, prompt


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize(("prompt_tokens", "copied"), [(37, 3), (33, 0), (32, 3)])
@pytest.mark.parametrize("caching", [False, True])
def test_answers_share_the_pages_of_their_prompt(
    tiny: SaveTiny, caching: bool, prompt_tokens: int, copied: int, ahead: bool
) -> None:
    """37 tokens fill two pages of 16; each further answer copies the third. Behind 33 and its 32 shared ones there is
    nothing to copy; of 32, the last is computed anew for its logits, so the second page is."""
    loaded = load(tiny("llama-3-gqa").folder)
    alone = generate(engine_of(loaded), [prompt(prompt_tokens)], max_tokens=9)[0]
    engine = engine_of(loaded, prefix_caching=caching, capture=as_it_is if ahead else None)
    first = engine.add(prompt(prompt_tokens), SamplingParams(max_tokens=9))
    while not first.output_ids:
        engine.step()
    answers = [first, *engine.fork(first, 3)]
    engine.cache.check()
    assert engine.cache.counters().copied_pages == copied
    shared = (prompt_tokens - 1) // 16
    tables = [answer.pages.table.pages for answer in answers if answer.pages is not None]
    assert len(tables) == 4
    assert len({tuple(table[:shared]) for table in tables}) == 1
    assert len({page for table in tables for page in table[shared:]}) == sum(len(table) - shared for table in tables)
    for _ in engine.run_until_idle():
        engine.cache.check()
    assert [answer.output_ids for answer in answers] == [alone.output_ids] * 4
    assert [answer.cached_tokens for answer in answers[1:]] == [prompt_tokens - 1] * 3
    assert engine.cache.counters().allocated_pages == 0


def test_answers_that_have_no_room_wait_and_find_the_prompt_cached(tiny: SaveTiny) -> None:
    loaded = load(tiny("llama-3-gqa").folder)
    alone = generate(engine_of(loaded), [prompt(37)], max_tokens=20)[0]
    engine = engine_of(loaded, num_pages=4)
    first = engine.add(prompt(37), SamplingParams(max_tokens=20))
    waiting = engine.fork(first, 2)
    engine.step()
    assert [answer.pages for answer in waiting] == [None, None]
    for _ in engine.run_until_idle():
        engine.cache.check()
    assert [answer.output_ids for answer in (first, *waiting)] == [alone.output_ids] * 3


def test_answers_that_are_drawn_differ(tiny: SaveTiny) -> None:
    engine = engine_of(load(tiny("llama-3-gqa").folder))
    first = engine.add(prompt(20), SamplingParams(max_tokens=12, temperature=1.0))
    engine.step()
    answers = [first, *engine.fork(first, 3)]
    list(engine.run_until_idle())
    assert len({tuple(answer.output_ids) for answer in answers}) == 4
