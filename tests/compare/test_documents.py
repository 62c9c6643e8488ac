from __future__ import annotations

import pytest
from msgspec.structs import replace

from kvtool.compare.documents import NamedDocument, compare_documents, regressions
from kvtool.results import BenchDocument, CompareDocument, CompareRow, encode
from kvtool.system.errors import KvtoolError
from tests.compare.example import ENVIRONMENT, document


def compare(a: BenchDocument, *others: BenchDocument) -> CompareDocument:
    names = ["new.json", "newer.json", "newest.json"]
    found = compare_documents(
        NamedDocument("base.json", a), [NamedDocument(n, d) for n, d in zip(names, others, strict=False)]
    )
    encode(found)
    return found


def row(found: CompareDocument, metric: str, place: int = 0) -> CompareRow:
    return [row for row in found.rows if row.metric == metric][place]


def test_a_document_against_itself_is_the_same() -> None:
    found = compare(document(), document())
    assert {row.verdict for row in found.rows} == {"same"}
    assert {row.ratio for row in found.rows} == {1.0}
    assert found.warnings == []
    assert {row.metric for row in found.rows} == {
        "ttft_ms", "tpot_ms", "itl_ms", "e2e_ms", "prefill_tokens_per_s", "decode_tokens_per_s", "mbu",
        "kv_allocated_bytes",
    }  # fmt: skip


def test_two_runs_of_the_same_speed_show_no_difference() -> None:
    found = compare(document(noise_seed=1), document(noise_seed=2))
    assert row(found, "tpot_ms").verdict == "no difference shown"
    assert row(found, "tpot_ms").p_value > 0.05


def test_a_slower_decode_is_found_with_its_interval() -> None:
    found = compare(document(noise_seed=1), document(tpot_factor=1.2, noise_seed=2))
    tpot = row(found, "tpot_ms")
    assert tpot.ratio == pytest.approx(1.2, rel=0.03)
    assert tpot.ci_low < tpot.ratio < tpot.ci_high
    assert tpot.ci_high - tpot.ci_low < 0.1
    assert tpot.verdict.startswith("slower by ")
    assert row(found, "ttft_ms").verdict == "no difference shown"
    assert row(found, "kv_allocated_bytes").verdict == "same"


def test_a_rate_takes_over_the_interval_of_its_timing_inverted() -> None:
    found = compare(document(noise_seed=1), document(tpot_factor=1.2, noise_seed=2))
    tpot, rate = row(found, "tpot_ms"), row(found, "decode_tokens_per_s")
    assert rate.ratio == pytest.approx(1 / tpot.ratio)
    assert (rate.ci_low, rate.ci_high) == (pytest.approx(1 / tpot.ci_high), pytest.approx(1 / tpot.ci_low))
    assert rate.verdict.startswith("slower by ")


def test_byte_counts_are_compared_exactly() -> None:
    other = document()
    more = [replace(case, memory=replace(case.memory, kv_allocated_bytes=5120)) for case in other.cases]
    kv = row(compare(document(), replace(other, cases=more)), "kv_allocated_bytes")
    assert (kv.verdict, kv.ratio, kv.ci_low, kv.unit) == ("more by 25.0 %", 1.25, None, "bytes")


def test_every_document_gets_rows_and_their_spread_is_told() -> None:
    found = compare(document(noise_seed=1), document(noise_seed=2), document(noise_seed=3, tpot_factor=1.1))
    assert [row.document for row in found.rows if row.metric == "tpot_ms"] == ["new.json", "newer.json"] * 2
    assert any("two runs of one side differ" in text and "tpot_ms" in text for text in found.assumptions)
    assert any("one run a side" in text for text in compare(document(runs=1), document(runs=1)).assumptions)


def test_whatever_else_differs_is_warned_of() -> None:
    other = document(
        environment={**ENVIRONMENT, "cpu": "Other CPU", "date_utc": "later", "other_load_cores": 0.1},
        seed=3,
        input_lens=(128, 64),
    )
    other = replace(other, definitions={})
    assert compare(document(), other).warnings == [
        "new.json: the environment differs: cpu Example CPU against Other CPU",
        "new.json: inputs differ: seed 0 against 3",
        "new.json: its metrics are defined in other words than the baseline's: read both documents' definitions",
        "new.json: 1 cases only in the baseline: latency/512x2",
        "new.json: 1 cases not in the baseline: latency/64x2",
    ]


def test_one_iteration_is_said_and_one_request_gives_no_interval() -> None:
    found = compare(document(iterations=1), document(iterations=1, tpot_factor=2))
    assert any("one iteration a side" in text for text in found.warnings)
    assert row(found, "tpot_ms").ci_low is not None

    alone = document(iterations=1, tpot_factor=2)
    alone = replace(alone, cases=[replace(case, samples=case.samples[:1]) for case in alone.cases])
    tpot = row(compare(document(iterations=1), alone), "tpot_ms")
    assert (tpot.ci_low, tpot.verdict) == (None, "cannot tell from one run")


def test_metrics_that_do_not_follow_from_their_samples_are_warned_of() -> None:
    other = document()
    changed = [replace(c, metrics=replace(c.metrics, ttft_ms=replace(c.metrics.ttft_ms, p50=1.0))) for c in other.cases]
    found = compare(document(), replace(other, cases=changed))
    assert any("ttft_ms is not the median of its samples" in text for text in found.warnings)
    assert row(found, "ttft_ms").ci_low is None


def test_a_value_on_one_side_only_is_not_comparable() -> None:
    other = document()
    without = [replace(case, roofline=replace(case.roofline, mbu=None)) for case in other.cases]
    mbu = row(compare(document(), replace(other, cases=without)), "mbu")
    assert (mbu.a, mbu.b, mbu.ratio, mbu.verdict) == (0.5, None, None, "not comparable: one side has no value")
    zero = [replace(case, roofline=replace(case.roofline, mbu=0.0)) for case in other.cases]
    mbu = row(compare(replace(other, cases=zero), document()), "mbu")
    assert mbu.verdict == "not comparable: 0 and 0.5"


def test_documents_without_a_common_case_are_refused() -> None:
    with pytest.raises(KvtoolError, match=r"^base.json and new.json have no case in common: input_len 128 against 256"):
        compare(document(input_lens=(128,)), document(input_lens=(256,)))
    with pytest.raises(KvtoolError, match="one of them has no cases"):
        compare(document(), document(input_lens=()))


def test_a_regression_is_worse_beyond_the_limit_with_its_whole_interval() -> None:
    found = compare(document(noise_seed=1), document(tpot_factor=1.2, noise_seed=2))
    failing = {row.metric for row in regressions(found.rows, limit=0.05)}
    assert failing == {"tpot_ms", "itl_ms", "decode_tokens_per_s"}, "mbu is no gate, TTFT did not change"
    assert regressions(found.rows, limit=0.25) == []
    faster = compare(document(noise_seed=1), document(tpot_factor=0.8, noise_seed=2))
    assert regressions(faster.rows, limit=0.05) == []
