"""Releases of one engine for one model: what each makes of a start, and which changes explain the difference."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvtool.catalog.models_yaml import load_catalogue
from kvtool.compare.releases import compare_releases
from kvtool.report.compare.releases import change_line, releases_table
from kvtool.results import ReleasesDocument
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.options import SizeOptions
from kvtool.system.errors import KvtoolError

GEMMA = load_catalogue().get("gemma-3-27b-it")
OPTIONS = SizeOptions(
    contexts=(32768,),
    max_model_len=32768,
    engine=EngineOptions(name="vllm", max_model_len=32768, kv_cache_memory_bytes=20 << 30),
)


def compared(*versions: str | None) -> ReleasesDocument:
    return compare_releases(GEMMA, OPTIONS, [("vllm", version) for version in versions])


def test_a_second_batch_in_flight_is_what_0_26_changed() -> None:
    """52 sliding layers in 6 groups of 1,023 + 8,192 tokens, or 16,384, in blocks of 16, one more each; 2,048 full."""
    document = compared("0.25", "0.26")
    old, new = (row.terms["blocks_per_request"] for row in document.rows)
    assert (old, new) == (2048 + 6 * (576 + 1), 2048 + 6 * (1088 + 1))
    moved = {change.rule: change.effects.get("blocks_per_request") for change in document.changes}
    assert moved.pop("in_flight_batches") == [old, new]
    assert moved == dict.fromkeys(("hybrid_prefix_caching", "padded_states", "windows_beside_latent"))


def test_the_order_of_releases_is_the_users() -> None:
    back = compared("0.26", "0.25")
    assert [row.release for row in back.rows] == ["0.26", "0.25"]
    assert {change.rule for change in back.changes if change.effects} == {"in_flight_batches"}


def test_a_rule_that_changes_twice_is_told_step_by_step() -> None:
    document = compared("0.11", None)
    ratios = [change.since for change in document.changes if change.rule == "group_ratio"]
    assert ratios == ["0.12", "0.18"]
    assert [row.standing for row in document.rows] == ["extrapolated", "exact"]


def test_releases_in_a_table_and_changes_in_words() -> None:
    document = compared("0.25", "0.26")
    table = releases_table(document)
    assert table.columns == ("term", "vLLM 0.25", "vLLM 0.26")
    assert ("blocks a request", "5,510", "8,582") in table.rows
    (line,) = [change_line(change) for change in document.changes if change.effects]
    assert line.startswith("0.26: windows and chunks keep the tokens of every batch in flight")
    assert "blocks a request 5,510 -> 8,582" in line
    assert "#47728" in line


def test_releases_of_two_engines_do_not_compare() -> None:
    with pytest.raises(KvtoolError, match="releases of one engine compare, not of sglang and vllm"):
        compare_releases(GEMMA, OPTIONS, [("vllm", None), ("sglang", None)])


def test_requests_are_as_long_as_the_engine_takes_them() -> None:
    """Blocks a request are those of the longest, whatever contexts a size without an engine would have shown."""
    options = replace(OPTIONS, contexts=(4096,))
    document = compare_releases(GEMMA, options, [("vllm", "0.25"), ("vllm", "0.26")])
    assert document.context == 32768
