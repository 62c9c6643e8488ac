"""The commands that measure, end to end on a GPU with tiny settings: whole documents, checked outputs, sane shares."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kvtool.bench.kernels.passes import captured
from tests.cli.in_process import Done, run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

Kvtool = Callable[..., Done]
TINY_BENCH = (
    *("--num-layers", "2", "--input-len", "256", "--batch-size", "1,4", "--output-len", "8", "--num-iters", "2"),
    *("--num-iters-warmup", "1", "--json"),
)


@pytest.fixture
def kvtool(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Kvtool:
    monkeypatch.setattr("kvtool.bench.session.CEILING_SECONDS", 0.5)
    return lambda *args: run(capsys, monkeypatch, *args)


def test_bench(kvtool: Kvtool, tmp_path: Path) -> None:
    done = kvtool("bench", "qwen3-0.6b", *TINY_BENCH, "--out", str(tmp_path))
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert {case["part"] for case in document["cases"]} == {"latency", "prefix", "no-cache"}
    assert document["environment"]["gpu"] == torch.cuda.get_device_name()
    for case in document["cases"]:
        assert case["inputs"]["backend"] == "triton"
        assert case["check"]["outputs_equal"] is not False, case["check"]["text"]
        assert case["memory"]["kv_predicted_bytes"] == case["memory"]["kv_allocated_bytes"]
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_bench_of_latents(kvtool: Kvtool) -> None:
    done = kvtool("bench", "deepseek-v2-lite", "--parts", "latency", *TINY_BENCH)
    assert done.code == 0, done.err
    assert all(case["check"]["outputs_equal"] for case in json.loads(done.out)["cases"])


@pytest.mark.parametrize("model", ["llama-3.1-8b", "gemma-3-1b", "deepseek-v2-lite"])
def test_kernels(kvtool: Kvtool, model: str) -> None:
    grid = ("--context", "512,8k", "--batch-size", "1,16", "--kv-cache-dtype", "bf16,fp8", "--num-iters", "5", "--json")
    done = kvtool("kernels", model, *grid)
    assert done.code == 0, done.err
    cases = json.loads(done.out)["cases"]
    assert all(case["check"]["outputs_equal"] for case in cases)
    streams = [case for case in cases if case["kernel"].endswith("decode") and case["inputs"]["context"] == 8192]
    assert all(0.05 < case["roofline"]["mbu"] <= 1.03 for case in streams if case["inputs"]["batch_size"] == 16)


def test_kernels_beside_their_peers(kvtool: Kvtool) -> None:
    """torch's own at least: equal outputs, in graphs, timed as often as ours."""
    grid = ("--context", "1k,8k", "--batch-size", "1,8", "--block-size", "64", "--num-iters", "5", "--json")
    done = kvtool("kernels", "llama-3.1-8b", *grid, "--peers", "all")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    for case in document["cases"]:
        assert case["cold_start"]["capture_s"] > 0
        assert case["power"]["samples"] >= 2 or case["power"]["power_w"] is None
        for peer in case["peers"]:
            assert peer["outputs_equal"] is not False, (case["name"], peer)
            assert len(peer["samples_s"]) == (len(case["samples_s"]) if peer["time_ms"] else 0)
            if peer["name"] in ("sdpa", "flex"):
                assert peer["ratio"], (case["name"], peer["note"])
                assert "no CUDA graph" not in peer["note"]


def test_a_failed_capture_leaves_the_stream_as_it_was() -> None:
    def cannot() -> None:
        torch.ones(1, device="cuda").item()

    before = torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        captured([cannot], torch.device("cuda:0"))
    assert torch.cuda.current_stream() == before
    assert float(torch.ones(4, device="cuda").sum()) == 4.0
    captured([lambda: torch.ones(4, device="cuda")], torch.device("cuda:0"))()


def test_kernels_on_torch_agree(kvtool: Kvtool) -> None:
    done = kvtool("kernels", "qwen3-0.6b", "--backend", "torch", "--context", "1k", "--batch-size", "2", "--json")
    assert done.code == 0, done.err
    assert all(case["check"]["outputs_equal"] for case in json.loads(done.out)["cases"])


def test_what_does_not_fit_is_refused_in_one_line(kvtool: Kvtool) -> None:
    done = kvtool("kernels", "llama-3.1-8b", "--context", "1m", "--batch-size", "4096")
    assert (done.code, done.out) == (3, "")
    assert done.err.count("\n") == 1
