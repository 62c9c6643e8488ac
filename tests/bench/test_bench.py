"""The whole benchmark on a tiny model: every part, its accounting, and what is kept of an interrupted run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from kvtool.bench import bench as run
from kvtool.bench import session
from kvtool.bench.cases import prefix, scenario
from kvtool.bench.cases.latency import Latency
from kvtool.bench.cases.no_cache import NoCache
from kvtool.bench.cases.prefix import PrefixHits
from kvtool.bench.definitions import DEFINITIONS
from kvtool.bench.options import BenchOptions, bench_options
from kvtool.cache.tiers.options import parse_tiers
from kvtool.machine import pace
from kvtool.machine.roofline import Ceiling
from kvtool.results import BenchDocument, Case, encode
from kvtool.system.errors import KvtoolError
from tests.bench.tiny_model import TINY, config

FAST = Ceiling(
    read_gbps=1e6,
    copy_gbps=1e6,
    tflops=1e6,
    read_buffer_bytes=1,
    llc_bytes=None,
    dtype="float32",
    kernels={},
    samples={},
)
LATENCY = Latency(input_lens=(20, 40), batch_sizes=(1, 3), output_len=5)
PREFIX = PrefixHits(input_lens=(20, 40), output_len=5)
NO_CACHE = NoCache(input_lens=(16, 33), output_len=5)
OPTIONS = BenchOptions(parts=(LATENCY, PREFIX, NO_CACHE), num_iters=3, num_iters_warmup=1)


def latency_only(**given: object) -> BenchOptions:
    return replace(OPTIONS, parts=(replace(LATENCY, **given),))


@pytest.fixture(autouse=True)
def a_very_fast_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "measure_roofline", lambda *arguments, **named: FAST)


def bench(options: BenchOptions = OPTIONS, **given: object) -> session.Outcome[BenchDocument]:
    return run.bench(TINY, config(**given), options, progress=lambda doing, done: None)


def only(document: BenchDocument, part: str) -> list[Case]:
    return [case for case in document.cases if case.part == part]


def test_every_part_makes_its_cases_in_order_and_the_document_survives_encoding() -> None:
    outcome = bench()
    assert outcome.errors == []
    assert not outcome.interrupted
    assert [case.name for case in outcome.document.cases] == [
        *("latency/20x1", "latency/20x3", "latency/40x1", "latency/40x3"),
        *("prefix/0", "prefix/0.5", "prefix/0.9"),
        *(f"no-cache/{arm}/{n}" for n in (16, 33) for arm in ("no_cache", "contiguous", "preallocated", "paged")),
    ]
    assert msgspec.json.decode(encode(outcome.document), type=BenchDocument) == outcome.document
    assert outcome.document.definitions == DEFINITIONS


def test_output_lengths_are_exact_and_every_request_is_sampled() -> None:
    for case in only(bench().document, "latency"):
        batch = int(case.inputs["batch_size"] or 0)
        assert len(case.samples) == 3 * batch
        for sample in case.samples:
            assert sample.output_tokens == 5
            assert sample.prompt_tokens == case.inputs["input_len"]
            assert sample.cached_tokens == 0
            assert len(sample.itl_s) == 4
            assert sample.ttft_s + sum(sample.itl_s) == pytest.approx(sample.e2e_s)
            assert sample.tpot_s == pytest.approx(sum(sample.itl_s) / 4)


def test_predicted_bytes_are_the_allocated_ones_and_the_waste_is_the_empty_slots() -> None:
    for case in only(bench(block_size=16).document, "latency"):
        batch, length = int(case.inputs["batch_size"] or 0), int(case.inputs["input_len"] or 0)
        token_bytes = 2 * 2 * (16 + 16) * 4  # layers x heads x (K + V) x fp32
        pages = -(-(length + 4) // 16)  # the fifth token out is never written
        assert case.memory.kv_predicted_bytes == case.memory.kv_allocated_bytes == batch * pages * 16 * token_bytes
        assert case.memory.kv_waste_bytes == batch * (pages * 16 - length - 4) * token_bytes


def test_bytes_and_flops_of_a_step_follow_from_the_shape() -> None:
    case = only(bench().document, "latency")[0]
    params = 512 * 64 + 64 + 2 * (64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64)
    assert case.bytes.weights_read == 4 * params
    assert case.bytes.kv_written == 2 * 2 * 32 * 4
    steps = [20 + step for step in (1, 2, 3, 4)]  # the new token attends to itself
    assert case.bytes.kv_read == sum(steps) / 4 * 2 * 2 * 32 * 4
    assert case.bytes.decode_flops == 2 * params + sum(steps) / 4 * 2 * (2 * 4 * 32)


def test_hits_are_those_asked_for_to_the_page_and_outputs_are_equal() -> None:
    for case in only(bench().document, "prefix"):
        assert case.prefix is not None
        asked = round(case.prefix.requested_hit_rate * 40 / 16) * 16
        assert case.prefix.measured_hit_rate == min(asked, 32) / 40
        assert case.check.outputs_equal is True
        assert case.check.max_abs_logit_diff is not None
        assert case.check.max_abs_logit_diff < 1e-3
        assert {sample.arm for sample in case.samples} == {"cached", "uncached"}
        assert case.prefix.kv_bytes_not_written == min(asked, 32) * 2 * 2 * 32 * 4
        assert (case.prefix.flops_saved > 0) == (asked > 0)


def test_a_prefix_is_found_in_each_tier_and_nothing_of_the_run_is_left_there(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("the user's own")
    options = replace(OPTIONS, parts=(replace(PREFIX, hit_rates=(0.0, 0.9)),))
    outcome = bench(options, tiers=parse_tiers(f"dram=1MiB,disk={tmp_path}:1MiB", "back"))
    assert outcome.errors == []
    found = {case.name: case for case in only(outcome.document, "prefix")}
    assert [(name, case.inputs["tier"]) for name, case in found.items()] == [
        *(("prefix/0", "pool"), ("prefix/0.9", "pool"), ("prefix/0.9/dram", "dram"), ("prefix/0.9/disk", "disk")),
    ]
    for name in ("prefix/0.9/dram", "prefix/0.9/disk"):
        cached = [sample.cached_tokens for sample in found[name].samples if sample.arm == "cached"]
        assert set(cached) == {32}
        assert found[name].check.outputs_equal is True
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_tiers_without_a_part_that_measures_them_are_refused() -> None:
    with pytest.raises(KvtoolError, match="--tiers are measured where prefixes are: add prefix to --parts"):
        bench(latency_only(), tiers=parse_tiers("dram=1MiB"))


def test_a_prefix_length_and_a_hit_rate_make_the_prompt_as_long_as_they_say() -> None:
    part = PrefixHits(input_lens=(20,), output_len=2, prefix_len=32, hit_rates=(0.5, 0.8))
    given = BenchOptions(parts=(part,), num_iters=2, num_iters_warmup=0)
    assert given.longest_tokens == 64 + 2
    cases = bench(given).document.cases
    assert [(case.inputs["input_len"], case.inputs["prefix_len"]) for case in cases] == [(64, 32), (40, 32)]


def test_the_ways_of_keeping_k_and_v_hold_what_they_must_and_say_the_same() -> None:
    token_bytes = 2 * 2 * 32 * 4
    for case in only(bench().document, "no-cache"):
        stored = int(case.inputs["input_len"] or 0) + 4
        expected = {"no_cache": 0, "contiguous": stored, "preallocated": 1024, "paged": -(-stored // 16) * 16}
        arm = str(case.inputs["arm"])
        assert case.memory.kv_allocated_bytes == case.memory.kv_predicted_bytes == expected[arm] * token_bytes
        assert case.check.outputs_equal is (None if arm == "paged" else True)


def test_an_impossible_bandwidth_is_an_error_of_the_accounting(monkeypatch: pytest.MonkeyPatch) -> None:
    ceiling = replace(FAST, read_gbps=1e-9)
    monkeypatch.setattr(session, "measure_roofline", lambda *arguments, **named: ceiling)
    outcome = bench(latency_only())
    assert len(outcome.errors) == 4
    assert all(case.roofline.mbu is None for case in outcome.document.cases)


def test_a_loaded_machine_is_said_in_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loaded:
        def other_cores(self) -> float:
            return 0.9

    class Silent:
        def other_cores(self) -> None:
            return None

    monkeypatch.setattr(session, "LoadMeter", Loaded)
    monkeypatch.setattr(pace, "LoadMeter", Silent)  # of each iteration, whatever else runs here
    document = bench(replace(OPTIONS, parts=(NO_CACHE,))).document
    assert document.environment["other_load_cores"] == 0.9
    assert any(line.startswith("another process used 0.9 cores") for line in document.assumptions)


def test_a_small_working_set_has_no_mbu_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    ceiling = replace(FAST, llc_bytes=1 << 30)
    monkeypatch.setattr(session, "measure_roofline", lambda *arguments, **named: ceiling)
    case = bench(latency_only()).document.cases[0]
    assert case.roofline.mbu is None
    assert "last-level cache" in (case.roofline.reason or "")


def test_requests_that_queue_wait_and_have_no_decode_bandwidth() -> None:
    options = latency_only(batch_sizes=(1,), concurrency=2, num_prompts=6)
    case = bench(options, max_num_seqs=2).document.cases[0]
    assert len(case.samples) == 3 * 6
    assert case.roofline.mbu is None
    assert case.metrics.prefill_tokens_per_s is None


def test_a_request_rate_spreads_arrivals() -> None:
    options = latency_only(input_lens=(20,), request_rate=200.0, num_prompts=5)
    case = bench(options).document.cases[0]
    assert case.inputs["request_rate"] == 200.0
    assert all(sample.ttft_s > 0 for sample in case.samples)


def test_ctrl_c_keeps_the_cases_that_were_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **named: object) -> Case:
        raise KeyboardInterrupt

    monkeypatch.setattr(prefix, "prefix_case", interrupted)
    outcome = bench()
    assert outcome.interrupted
    assert [case.part for case in outcome.document.cases] == ["latency"] * 4
    assert "interrupted" in outcome.document.assumptions[-1]


def test_a_workload_is_a_case_whose_hits_were_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"scenarios": ("translation",), "num_prompts": 2, "input_lens": (60,), "num_iters": 1}
    options = bench_options("cpu", parts=("workload",), **given)
    outcome = bench(options)
    (case,) = msgspec.json.decode(encode(outcome.document), type=BenchDocument).cases
    assert (case.name, case.part, outcome.unequal) == ("workload/translation/lru", "workload", [])
    assert (case.roofline.mbu, case.roofline.mfu) == (None, None)
    assert any("translation: prompts of up to 60 tokens" in line for line in outcome.document.assumptions)
    monkeypatch.setattr(scenario, "run_requests", lambda *given: [])  # nothing is primed, so nothing can be found
    (wrong,) = bench(options).unequal
    assert wrong == "workload/translation/lru: 64 hit tokens were generated but the allocator counted 0"
