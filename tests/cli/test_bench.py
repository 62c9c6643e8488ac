"""`kvtool bench` as it is typed, on a model cut to one layer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kvtool.units import MIB
from tests.cli.in_process import Done, run

Kvtool = Callable[..., Done]
QUICK = (
    *("bench", "smollm2-135m", "--num-layers", "1", "--input-len", "40", "--batch-size", "1,2", "--output-len", "3"),
    *("--num-iters", "2", "--num-iters-warmup", "1"),
)


@pytest.fixture
def kvtool(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Kvtool:
    monkeypatch.setattr("kvtool.bench.session.CEILING_SECONDS", 0.2)
    monkeypatch.setattr("kvtool.machine.roofline.stream_buffer_bytes", lambda device, llc_bytes: 16 * MIB)
    return lambda *args: run(capsys, monkeypatch, *args)


def test_tables_fit_the_terminal_and_out_gets_every_form(kvtool: Kvtool, tmp_path: Path) -> None:
    done = kvtool(*QUICK, "--out", str(tmp_path / "report"))
    assert "How fast" in done.out
    assert max(len(line) for line in done.out.splitlines()) <= 100
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        *("bench.csv", "bench.json", "bench.png", "report.html"),
    ]
    document = json.loads((tmp_path / "report" / "bench.json").read_text())
    assert document["schema"] == "kvtool.bench/1"
    assert {case["part"] for case in document["cases"]} == {"latency", "prefix", "no-cache"}
    assert any("only the first 1 of 30 layers" in line for line in document["assumptions"])
    assert done.code in (0, 3)  # 3: this machine was busier while its limit was measured; the document says so
    assert (done.code == 3) == any(
        (case["roofline"]["reason"] or "").startswith("accounting") for case in document["cases"]
    )


def test_parts_and_hit_rates_can_be_chosen_and_json_is_one_document(kvtool: Kvtool) -> None:
    document = json.loads(kvtool(*QUICK, "--parts", "prefix", "--hit-rate", "0.4", "--json").out)
    (case,) = document["cases"]
    assert case["prefix"]["measured_hit_rate"] == 16 / 40
    assert case["check"]["outputs_equal"] is True


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("bench", "smolm2-135m"), "did you mean"),
        (("bench", "falcon-7b"), "does not run"),
        (("bench", "--input-len", "-5"), "-5"),
        (("bench", "--input-len", "0"), "whole number of tokens"),
        (("bench", "--batch-size", "0"), "batch size 0"),
        (("bench", "--batch-size", "x"), "'x'"),
        (("bench", "--parts", "speed"), "unknown part 'speed'"),
        (("bench", "--hit-rate", "1.2"), "hit rate 1.2"),
        (("bench", "--hit-rate", "high"), "'high'"),
        (("bench", "--num-layers", "31"), "1 to the 30 layers"),
        (("bench", "--dtype", "fp8"), "dtype 'fp8'"),
        (("bench", "--kv-cache-dtype", "int7"), "'int7'"),
        (("bench", "--backend", "triton", "--device", "cpu"), "needs a CUDA device"),
        (("bench", "--device", "tpu"), "'tpu'"),
        (("bench", "--block-size", "0"), "block-size 0"),
        (("bench", "--num-prompts", "5"), "--num-prompts needs"),
        (("bench", "--workload", "agents"), "workload 'agents' is neither a file nor one of"),
        (("bench", "--eviction", "fifo"), "--eviction is of the workload part: name one, as --workload agent"),
        (("bench", "--workload", "agent", "--goodput", "ttft"), "goodput 'ttft' has no limit above 0 milliseconds"),
        (("bench", "--burstiness", "0.5"), "--burstiness needs --request-rate"),
        (("bench", "--weights", "nowhere"), "neither 'random'"),
        (("bench", "--out", "/proc/nowhere"), "/proc/nowhere"),
        (("bench", "--peers", "transformer"), "unknown peer 'transformer': did you mean transformers"),
        (("bench", "--peers", "sdpa"), "of all, transformers, transformers-static, transformers-paged, vllm, sglang"),
        (("bench", "--peers", "all", "--concurrency", "2"), "--peers run whole batches of the latency part"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_exit_code_2(kvtool: Kvtool, args: tuple[str, ...], message: str) -> None:
    done = kvtool(*args)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err
    assert done.err.startswith("kvtool: ")
    assert done.err.count("\n") == 1


def test_other_engines_stand_beside_ours(kvtool: Kvtool) -> None:
    done = kvtool(*QUICK, "--parts", "latency", "--peers", "transformers-static,sglang")
    assert "Next to other engines" in done.out
    assert "transformers-static" in done.out
    assert "SGLang is compared on the first CUDA device" in " ".join(done.out.split())
    assert done.code in (0, 3)


@pytest.mark.parametrize("device", ["cuda:98", "cuda:99"])
def test_a_device_that_is_not_there_is_exit_code_3(kvtool: Kvtool, device: str) -> None:
    done = kvtool("bench", "--device", device)
    assert (done.code, done.err.count("\n")) == (3, 1)


def test_more_pages_than_memory_is_exit_code_3(kvtool: Kvtool) -> None:
    done = kvtool("bench", "--parts", "latency", "--num-layers", "1", "--input-len", "1m", "--batch-size", "4096")
    assert done.code == 3
    assert done.err.count("\n") == 1
