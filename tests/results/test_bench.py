"""Bench documents: cases of all parts, and documents that were written before parts had structs of their own."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from kvtool.results import (
    AccuracyCase,
    BenchDocument,
    DisaggregateCase,
    EndpointCase,
    LatencyCase,
    NoCacheCase,
    PrefixCase,
    RanksCase,
    Sample,
    WorkloadCase,
    encode,
    read_document,
    tpot_s,
)
from kvtool.system.errors import KvtoolError

ROOT = Path(__file__).parents[2]
WRITTEN = sorted([ROOT / "tests" / "data" / "bench_example.json", *ROOT.glob("examples/reports/*/bench.json")])
COMMON = {
    *("name", "part", "inputs", "samples", "metrics", "bytes", "roofline", "memory", "prefix", "check"),
    *("power", "cold_start", "peers", "load"),
}


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.parent.name)
def test_documents_of_the_repository_are_read_and_written_with_the_same_keys_and_values(path: Path) -> None:
    document = read_document(path, BenchDocument)
    kinds = {"latency": LatencyCase, "prefix": PrefixCase, "no-cache": NoCacheCase}
    own = {"workload": WorkloadCase, "endpoint": EndpointCase, "ranks": RanksCase, "disaggregate": DisaggregateCase}
    own |= {"accuracy": AccuracyCase}
    kinds |= own
    assert all(type(case) is kinds[case.part] for case in document.cases)
    before, after = json.loads(path.read_bytes()), json.loads(encode(document))
    for old, again in zip(before["cases"], after["cases"], strict=True):
        assert again.keys() == COMMON | {again["part"]} & own.keys()
        assert holds(again, old)
        assert (again["prefix"] is None) == (again["part"] != "prefix")


def holds(after: object, before: object) -> bool:
    """Whether every value that was there is there again; keys may have come."""
    if isinstance(before, dict) and isinstance(after, dict):
        return all(key in after and holds(after[key], value) for key, value in before.items())
    if isinstance(before, list) and isinstance(after, list):
        return len(before) == len(after) and all(map(holds, after, before))
    return before == after


def test_a_part_that_there_is_not_is_refused_by_its_place(tmp_path: Path) -> None:
    document = json.loads(WRITTEN[0].read_bytes())
    document["cases"][1]["part"] = "speed"
    (tmp_path / "bench.json").write_text(json.dumps(document))
    with pytest.raises(KvtoolError, match=r"Invalid value 'speed' - at `\$.cases\[1\].part`"):
        read_document(tmp_path / "bench.json", BenchDocument)


def test_a_prefix_case_always_has_its_savings() -> None:
    document = json.loads((ROOT / "tests" / "data" / "bench_example.json").read_bytes())
    case = next(case for case in document["cases"] if case["part"] == "prefix")
    with pytest.raises(msgspec.ValidationError, match="prefix"):
        msgspec.convert(case | {"prefix": None}, PrefixCase)


@pytest.mark.parametrize(("output_tokens", "expected"), [(1, None), (2, 1.5), (4, 0.5)])
def test_tpot_is_of_the_tokens_after_the_first(output_tokens: int, expected: float | None) -> None:
    assert tpot_s(0.5, 2.0, output_tokens) == expected
    sample = Sample(
        arm="baseline",
        iteration=0,
        ttft_s=0.5,
        e2e_s=2.0,
        itl_s=[],
        output_tokens=output_tokens,
        prompt_tokens=1,
        cached_tokens=0,
    )
    assert sample.tpot_s == expected
    assert "tpot_s" not in json.loads(msgspec.json.encode(sample)), "what follows from a sample is not told again"
