"""`kvtool kernels` as it is typed, on a cache and a ceiling small enough for a test."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kvtool.bench.kernels import kernels
from kvtool.cli.kernels import EXAMPLES
from kvtool.machine import roofline
from kvtool.units import MIB
from tests.cli.in_process import Done, run

Kvtool = Callable[..., Done]
QUICK = ("smollm2-135m", "--context", "40,64", "--batch-size", "1,3", "--chunk-len", "16", "--num-iters", "2")


@pytest.fixture
def kvtool(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Kvtool:
    monkeypatch.setattr(roofline, "stream_buffer_bytes", lambda device, llc_bytes: MIB)
    monkeypatch.setattr(kernels, "last_level_cache_bytes", lambda device: MIB)
    monkeypatch.setattr("kvtool.bench.session.CEILING_SECONDS", 0.05)
    monkeypatch.setattr(kernels, "PASS_SECONDS", 0.005)
    return lambda *args: run(capsys, monkeypatch, "kernels", *args, "--device", "cpu")


def test_json_is_one_document_and_out_gets_every_form(kvtool: Kvtool, tmp_path: Path) -> None:
    done = kvtool(*QUICK, "--json", "--out", str(tmp_path / "report"))
    document = json.loads(done.out)
    assert document["schema"] == "kvtool.kernels/1"
    assert [case["kernel"] for case in document["cases"]] == [
        *("paged_decode",) * 4,
        *("paged_prefill",) * 2,
        *("store_kv",) * 3,
    ]
    assert all(case["check"]["outputs_equal"] for case in document["cases"])
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        *("kernels.csv", "kernels.json", "kernels.png"),
    ]
    assert json.loads((tmp_path / "report" / "kernels.json").read_text()) == document
    wrong = [case["name"] for case in document["cases"] if (case["roofline"]["reason"] or "").startswith("accounting")]
    assert done.code == (3 if wrong else 0)  # this machine may have been busier while its limit was measured
    assert all(name in done.err for name in wrong)


def test_peers_stand_beside_ours_in_every_form(kvtool: Kvtool, tmp_path: Path) -> None:
    done = kvtool(*QUICK, "--peers", "sdpa,vllm-triton", "--out", str(tmp_path))
    assert "peers of paged_decode" in done.out
    assert "vllm-triton: not importable: " in done.out
    assert max(len(line) for line in done.out.splitlines()) <= 100
    cases = json.loads((tmp_path / "kernels.json").read_text())["cases"]
    peers = [[(peer["name"], peer["outputs_equal"]) for peer in case["peers"]] for case in cases]
    assert peers == [[("sdpa", True), ("vllm-triton", None)]] * 6 + [[]] * 3
    rows = list(csv.DictReader((tmp_path / "kernels.csv").read_text().splitlines()))
    assert float(rows[0]["peers.sdpa.ratio"]) == cases[0]["peers"][0]["ratio"]
    assert rows[0]["peers.vllm-triton.note"].startswith("not importable")
    assert rows[-1]["peers.sdpa.ratio"] == ""


def test_a_wrong_output_exits_1_after_the_table(kvtool: Kvtool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvtool.bench.kernels.calls.ROUNDING", dict.fromkeys(("fp32", "bf16", "fp16"), -1.0))
    monkeypatch.setattr("kvtool.bench.limits.ACCOUNTING_LIMIT", 1e9)
    done = kvtool(*QUICK)
    assert done.code == 1
    assert "WRONG" in done.out
    assert "NOT equal" in done.err


def test_an_impossible_share_exits_3_after_the_table(kvtool: Kvtool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvtool.bench.limits.ACCOUNTING_LIMIT", 0.0)
    done = kvtool(*QUICK)
    assert done.code == 3
    assert "paged_decode" in done.out
    assert "accounting error" in done.err


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["smolm2-135m"], 2, "did you mean"),
        (["deepseek-v3.2"], 2, "has no layer to run"),
        (["--context", "-5"], 2, "context '-5' is not a number of tokens"),
        (["--context", ""], 2, "empty item"),
        (["--context", "1m", "--batch-size", "100000"], 3, "lower --context or --batch-size"),
        (["--batch-size", "0"], 2, "batch size 0 must be at least 1"),
        (["--block-size", "x"], 2, "block size 'x' is not a whole number"),
        (["--kv-cache-dtype", "int8"], 2, "'int8'"),
        (["--dtype", "int4"], 2, "dtype 'int4'"),
        (["--backend", "triton"], 2, "needs a CUDA device"),
        (["--num-iters", "0"], 2, "num-iters 0 must be at least 1"),
        (["--peers", "sdpa,flashinfr"], 2, "unknown peer 'flashinfr': did you mean flashinfer"),
        (["--peers", ""], 2, "empty item"),
        (["--out", "/dev/null/x"], 2, "--out /dev/null/x: cannot make this folder"),
    ],
)
def test_mistakes_are_one_line(kvtool: Kvtool, args: list[str], code: int, message: str) -> None:
    done = kvtool(*args)
    assert done.code == code
    assert done.out == ""
    assert done.err.startswith("kvtool: ")
    assert message in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("example", re.findall(r"kvtool kernels (.*)", EXAMPLES))
def test_the_help_s_examples_run(kvtool: Kvtool, example: str, tmp_path: Path) -> None:
    args = [str(tmp_path) if word == "kvtool-report" else word for word in example.split()]
    done = kvtool(*args, "--num-iters", "1", "--num-iters-warmup", "0")
    assert done.code in (0, 3)
    assert "paged_decode" in done.out
