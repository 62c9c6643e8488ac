from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtool.catalog.layer_pattern import expand_pattern
from kvtool.system.errors import KvtoolError


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("full", ["full"]),
        ("3 full", ["full"] * 3),
        ("2 (2 a, b), a", ["a", "a", "b"] * 2 + ["a"]),
        ("2 (a, 2 (b, c))", ["a", "b", "c", "b", "c"] * 2),
        ("  2 mla+indexer ,mla ", ["mla+indexer", "mla+indexer", "mla"]),
    ],
)
def test_patterns_are_written_out(pattern: str, names: list[str]) -> None:
    assert expand_pattern(pattern) == names


@pytest.mark.parametrize(
    "pattern", ["", "3", "full,", "2 (full", "full)", "0 full", "a b", "2 2 a", "Full", "(a))", ","]
)
def test_anything_else_is_refused(pattern: str) -> None:
    with pytest.raises(KvtoolError, match="is not a layer pattern"):
        expand_pattern(pattern)


@pytest.mark.parametrize("pattern", ["4097 full", "100 (100 full)"])
def test_absurd_depths_are_refused(pattern: str) -> None:
    with pytest.raises(KvtoolError):
        expand_pattern(pattern)


@given(st.text(alphabet="ab (),0129+", max_size=20))
def test_any_text_is_read_or_refused(pattern: str) -> None:
    try:
        names = expand_pattern(pattern)
    except KvtoolError:
        return
    assert names
