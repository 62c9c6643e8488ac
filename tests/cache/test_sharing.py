"""The runs of pages that prompts have in common."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvtool.cache.sharing import SharedRun, shared_runs


def test_runs_part_where_prompts_do() -> None:
    assert shared_runs({0: [5, 6, 7], 1: [5, 6, 9, 8], 2: [5, 6], 3: [1]}) == [
        SharedRun(0, 0, [5, 6], [0, 1, 2]),
        SharedRun(1, 2, [7], [0]),
        SharedRun(1, 2, [9, 8], [1]),
        SharedRun(0, 0, [1], [3]),
    ]
    assert shared_runs({0: [], 1: []}) == []


@given(st.lists(st.lists(st.integers(0, 2), max_size=5), max_size=6))
def test_the_runs_of_a_prompt_are_its_pages(keys: list[list[int]]) -> None:
    """A page stands for all tokens before it too, as in a cache."""
    pages_of = {i: [hash((*own[: place + 1],)) for place in range(len(own))] for i, own in enumerate(keys)}
    runs = shared_runs(pages_of)
    for prompt, pages in pages_of.items():
        own = [run for run in runs if prompt in run.prompts]
        assert [page for run in own for page in run.pages] == pages
        assert [run.depth for run in own] == list(range(len(own)))
    assert len({tuple(run.pages) for run in runs}) == len(runs)
