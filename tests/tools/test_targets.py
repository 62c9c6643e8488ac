"""The aims of `make gpu` beside documents: found by inputs, judged by direction, peers that were ahead named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import readme, targets
from tools.gpu.pieces import kernels, steps

H200 = {"gpu": "NVIDIA H200", "gpu_driver": "570", "torch": "2.11.0", "triton": "3.6.0", "date_utc": "2026"}


def kernel_case(
    kernel: str = "paged_decode", *, ms: float = 1.0, mbu: float | None = 0.5, mfu: float = 0.6, **inputs: object
) -> dict:
    return {
        "name": f"{kernel}/{inputs.get('context')}x{inputs.get('batch_size')}",
        "kernel": kernel,
        "inputs": {"model": "meta-llama/Llama-3.1-8B", "kv_cache_dtype": "bf16"} | inputs,
        "metrics": {"time_ms": {"p50": ms}, "tflops": 400.0},
        "roofline": {"mbu": mbu, "mfu": mfu, "read_gbps_measured": 4300.0, "tflops_measured": 800.0},
    }


def bench_case(model: str, *, tpot_ms: float = 5.0, ttft_ms: float = 250.0, mbu: float = 0.9, **inputs: object) -> dict:
    return {
        "name": "latency",
        "part": "latency",
        "inputs": {"model": model} | inputs,
        "metrics": {"tpot_ms": {"p50": tpot_ms}, "ttft_ms": {"p50": ttft_ms}},
        "bytes": {"prefill_flops": 141 * 10**12},
        "roofline": {"mbu": mbu, "read_gbps_measured": 4200.0, "tflops_measured": 800.0},
    }


CASES = [
    kernel_case(batch_size=32, context=4096, mbu=0.97, ms=0.2),
    kernel_case(batch_size=32, context=4096, mbu=0.8, ms=0.11, kv_cache_dtype="fp8"),
    kernel_case(batch_size=1, context=1024, mbu=None, ms=0.013),
    kernel_case("paged_prefill", query_len=8192, batch_size=1, context=8192),
    bench_case("meta-llama/Llama-3.1-8B", input_len=1024, batch_size=1, tpot_ms=3.9, mbu=0.88),
    bench_case("meta-llama/Llama-3.1-8B", input_len=8192, batch_size=1),
    bench_case("Qwen/Qwen3-0.6B", input_len=1024, batch_size=1, tpot_ms=0.49, mbu=0.4),
]


def verdicts(cases: list[dict], environment: dict = H200) -> dict[tuple[str, str], tuple[float | None, str]]:
    return {(row.target, row.unit): (row.measured, row.verdict) for row in targets.rows(cases, environment)}


def test_each_figure_is_found_and_judged() -> None:
    found = verdicts(CASES)
    assert found["decode 32 x 4k", "% of read"] == (97.0, "ambitious")
    assert found["decode 32 x 4k", "us"] == (200.0, "missed")
    assert found["fp8 cache, 32 x 4k", "x of bf16"] == (pytest.approx(0.2 / 0.11), "met")
    assert found["decode 1 x 1k", "us"] == (13.0, "missed")
    assert found["prefill of 8k", "TFLOP/s"] == (400.0, "missed")
    assert found["prefill of 8k", "% of matmul"] == (60.0, "met")
    assert found["Llama-3.1-8B, 1 at 1k", "ms TPOT"] == (3.9, "met")
    assert found["Llama-3.1-8B, 1 at 1k", "% of read"] == (88.0, "met")
    assert found["Qwen3-0.6B, 1 at 1k", "ms TPOT"] == (0.49, "ambitious")
    assert found["Qwen3-0.6B, 1 at 1k", "% of read"] == (40.0, "missed")
    assert found["Llama-3.1-8B, prefill of 8k", "TFLOP/s"] == (pytest.approx(564.0), "met")
    assert found["Llama-3.1-8B, prefill of 8k", "% of matmul"] == (pytest.approx(70.5), "met")
    assert found["MLA decode, 128 heads", "TFLOP/s"] == (None, "not measured")


def test_a_share_that_was_not_measured_is_none() -> None:
    assert verdicts([kernel_case(batch_size=1, context=32768, mbu=None)])["decode 1 x 32k", "% of read"] == (
        None,
        "not measured",
    )


@pytest.mark.parametrize(
    ("card", "units"),
    [
        ("NVIDIA A100-SXM4-80GB", {"% of read", "% of matmul", "x of bf16"}),
        ("NVIDIA H100 80GB HBM3", {"% of read", "% of matmul", "x of bf16", "TFLOP/s"}),
        ("NVIDIA H200", {"% of read", "% of matmul", "x of bf16", "TFLOP/s", "us", "ms TPOT"}),
    ],
)
def test_a_card_is_held_to_its_own_limits_and_to_no_other_cards_times(card: str, units: set[str]) -> None:
    """Every aim has a share, which is judged on all of them."""
    found = verdicts(CASES, H200 | {"gpu": card})
    assert {unit for _, unit in found} == units
    assert {name for name, _ in found} == {target.name for target in targets.TARGETS} - (
        set() if "us" in units else {"decode 1 x 1k"}
    )


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda target: f"{target.name}, {target.unit}")
def test_the_ambitious_figure_is_the_harder_one(target: targets.Target) -> None:
    assert target.verdict(target.ambitious) == "ambitious"
    assert target.verdict(target.must) == "met"
    worse = target.must * (1.1 if target.lower_is_better else 0.9)
    assert target.verdict(worse) == "missed"


def test_a_run_on_a_card_measures_every_target() -> None:
    """One that no piece measures would stay unmeasured on every card."""
    measured = []
    for grid in kernels.TARGETS:
        kind = "mla_decode" if "deepseek" in grid.model else f"paged_{grid.part}"
        shape = {"context": grid.context, "batch_size": grid.batch_size, "kv_cache_dtype": grid.cache}
        measured.append(kernel_case(kind, **shape, query_len=grid.query_len, model=grid.model))
    for batch in (*steps.STEPS, steps.PREFILL):
        measured.append(bench_case(batch.model, input_len=batch.input_len, batch_size=batch.batch_size))
    assert [name for name, (figure, _) in verdicts(measured).items() if figure is None] == []


def test_a_peer_that_was_ahead_is_named(tmp_path: Path) -> None:
    case = kernel_case(batch_size=32, context=4096)
    case["peers"] = [
        {"name": "sdpa", "ratio": 1.2},
        {"name": "flash-attn", "ratio": 0.9, "ratio_ci_high": 0.95},
        {"name": "flashinfer", "ratio": 0.98, "ratio_ci_high": 1.03},
        {"name": "flex", "ratio": None},
    ]
    text = written(tmp_path, [case])
    assert "Peers that ran: flash-attn, flashinfer, sdpa. One was ahead, by its whole interval, at:" in text
    assert "- meta-llama/Llama-3.1-8B paged_decode/4096x32: flash-attn, 0.90 of our time" in text
    assert text.partition("interval, at:")[2].count(" of our ") == 1
    assert "Measured in the same run: 4,300 GB/s read, 800 TFLOP/s of a matrix product." in text


def test_a_case_of_another_output_than_the_references_is_named_and_not_judged(tmp_path: Path) -> None:
    wrong = kernel_case(batch_size=32, context=4096, mbu=0.99) | {"check": {"outputs_equal": False}}
    text = written(tmp_path, [wrong])
    assert "| decode 32 x 4k | % of read | 90 | 96 | - | not measured |" in text
    assert "came out: meta-llama/Llama-3.1-8B paged_decode/4096x32." in text


def written(folder: Path, cases: list[dict]) -> str:
    (folder / "kernels").mkdir()
    document = {"schema": "kvtool.kernels/1", "environment": H200, "cases": cases}
    (folder / "kernels" / "kernels.json").write_text(json.dumps(document))
    return targets.write_targets(folder)


def test_the_committed_cpu_documents_have_none_of_the_figures() -> None:
    documents = targets.read_documents((readme.REPORTS / "cpu").glob("*.json"))
    assert documents
    cases = [case for document in documents for case in document["cases"]]
    assert {row.verdict for row in targets.rows(cases, documents[0]["environment"])} == {"not measured"}


def test_the_readme_shows_each_card_that_has_a_folder(tmp_path: Path) -> None:
    assert readme.cards(tmp_path) == readme.NO_CARD
    folder = tmp_path / "h200"
    folder.mkdir()
    text = written(folder, CASES)
    (folder / "kernels.png").write_bytes(b"")
    shown = readme.cards(tmp_path)
    assert shown.startswith(text.splitlines()[0])
    counts = [text.count(f" {verdict} |") for verdict in ("ambitious", "met", "missed", "not measured")]
    assert counts[0] == 3  # and the table's head
    assert f"Of {len(targets.TARGETS)} aims: 2 ambitious, {counts[1]} met, {counts[2]} missed, {counts[3]} not" in shown
    assert "no peer ran: [h200/targets.md](examples/reports/h200/targets.md)" in shown
    assert "![kernels on h200](examples/reports/h200/kernels.png)" in shown
    assert json.loads((folder / "targets.json").read_text())["environment"] == H200


def test_a_folder_without_documents_says_that_nothing_was_measured(tmp_path: Path) -> None:
    text = targets.write_targets(tmp_path)
    assert text.count("not measured") == sum(not target.cards for target in targets.TARGETS)
    assert "No peer ran." in text
