"""Ranks say what one process says: the same greedy tokens in fp32, whatever they share."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import pytest

from kvtool.engine.ranks.lead import RankedModel
from kvtool.ranks.layout import RankLayout
from tests.ranks.conftest import alone, prompts, run
from tests.ranks.models import MODELS


class Ranked(Protocol):
    def __call__(self, name: str, layout: RankLayout) -> AbstractContextManager[RankedModel]: ...


LAYOUTS = [
    ("smollm2", RankLayout(tp=3)),  # 9 heads and 3 KV heads
    ("gqa", RankLayout(tp=2)),
    ("gqa", RankLayout(tp=4, replicated_head=True)),  # each KV head on two ranks
    ("gqa", RankLayout(tp=4, dcp=2)),
    ("gqa", RankLayout(tp=4, dcp=2, ring="pass-kv")),
    ("gqa", RankLayout(cp=2, ring="pass-kv")),
    ("gqa", RankLayout(cp=2, ring="pass-q")),
    ("gqa", RankLayout(cp=4)),
    ("gqa", RankLayout(tp=2, cp=2)),
    ("mla", RankLayout(tp=2)),
    ("mla", RankLayout(tp=4, dcp=2)),
    ("mla", RankLayout(tp=2, dcp=2, ring="pass-kv")),
    ("mla", RankLayout(cp=4)),
    ("sinks", RankLayout(tp=2, cp=2)),
]


@pytest.mark.parametrize(("name", "layout"), LAYOUTS, ids=lambda value: str(value))
def test_ranks_say_what_one_process_says(name: str, layout: RankLayout, ranked: Ranked) -> None:
    with ranked(name, layout) as loaded:
        assert run(loaded, prompts(MODELS[name])) == alone(name)
