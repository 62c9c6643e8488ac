"""The aims of `make gpu` beside documents: found by inputs, judged by direction, peers that were ahead named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import readme, targets

H100 = {"gpu": "NVIDIA H100 80GB HBM3", "gpu_driver": "570", "torch": "2.11.0", "triton": "3.6.0", "date_utc": "2026"}
BY_NAME = {target.name: target for target in targets.TARGETS}


def kernel_case(kernel: str = "paged_decode", *, ms: float = 1.0, mbu: float | None = 0.5, **inputs: object) -> dict:
    return {
        "name": f"{kernel}/{inputs.get('context')}x{inputs.get('batch_size')}",
        "kernel": kernel,
        "inputs": {"model": "meta-llama/Llama-3.1-8B", "kv_cache_dtype": "bf16"} | inputs,
        "metrics": {"time_ms": {"p50": ms}, "tflops": 400.0},
        "roofline": {"mbu": mbu},
    }


def bench_case(model: str, *, tpot_ms: float = 5.0, ttft_ms: float = 250.0, **inputs: object) -> dict:
    return {
        "name": "latency",
        "part": "latency",
        "inputs": {"model": model} | inputs,
        "metrics": {"tpot_ms": {"p50": tpot_ms}, "ttft_ms": {"p50": ttft_ms}},
        "bytes": {"prefill_flops": 141 * 10**12},
    }


CASES = [
    kernel_case(batch_size=32, context=4096, mbu=0.97, ms=0.2),
    kernel_case(batch_size=32, context=4096, mbu=0.8, ms=0.11, kv_cache_dtype="fp8"),
    kernel_case(batch_size=1, context=1024, mbu=None, ms=0.013),
    kernel_case("paged_prefill", query_len=8192, batch_size=1, context=8192),
    bench_case("meta-llama/Llama-3.1-8B", input_len=1024, batch_size=1, tpot_ms=5.6),
    bench_case("meta-llama/Llama-3.1-8B", input_len=8192, batch_size=1),
    bench_case("Qwen/Qwen3-0.6B", input_len=1024, batch_size=1, tpot_ms=0.59),
]


def verdicts(cases: list[dict], environment: dict = H100) -> dict[str, tuple[float | None, str]]:
    return {row.target: (row.measured, row.verdict) for row in targets.rows(cases, environment)}


def test_each_figure_is_found_and_judged() -> None:
    found = verdicts(CASES)
    assert found["decode 32 x 4k"] == (97.0, "ambitious")
    assert found["fp8 cache, 32 x 4k"] == (pytest.approx(0.2 / 0.11), "met")
    assert found["decode 1 x 1k"] == (13.0, "missed")
    assert found["prefill of 8k"] == (400.0, "missed")
    assert found["Llama-3.1-8B, 1 at 1k"] == (5.6, "met")
    assert found["Qwen3-0.6B, 1 at 1k"] == (0.59, "ambitious")
    assert found["Llama-3.1-8B, prefill of 8k"] == (pytest.approx(564.0), "met")
    assert found["MLA decode, 128 heads"] == (None, "not measured")


def test_a_share_that_was_not_measured_is_none() -> None:
    assert verdicts([kernel_case(batch_size=1, context=32768, mbu=None)])["decode 1 x 32k"] == (None, "not measured")


def test_another_card_is_held_to_its_own_limits_and_not_to_an_h100s_times() -> None:
    found = verdicts(CASES, H100 | {"gpu": "NVIDIA A100-SXM4-80GB"})
    assert found["decode 32 x 4k"] == (97.0, "ambitious")
    assert found["Qwen3-0.6B, 1 at 1k"] == (0.59, "other card")


@pytest.mark.parametrize("name", BY_NAME)
def test_the_ambitious_figure_is_the_harder_one(name: str) -> None:
    target = BY_NAME[name]
    assert target.verdict(target.ambitious) == "ambitious"
    assert target.verdict(target.must) == "met"
    worse = target.must * (1.1 if target.lower_is_better else 0.9)
    assert target.verdict(worse) == "missed"


def test_a_peer_that_was_ahead_is_named(tmp_path: Path) -> None:
    case = kernel_case(batch_size=32, context=4096)
    case["peers"] = [
        {"name": "sdpa", "ratio": 1.2},
        {"name": "flash-attn", "ratio": 0.9},
        {"name": "flex", "ratio": None},
    ]
    text = written(tmp_path, [case])
    assert "Peers that ran: flash-attn, sdpa. One was ahead at:" in text
    assert "- meta-llama/Llama-3.1-8B paged_decode/4096x32: flash-attn, 0.90 of our time" in text
    assert "sdpa, " not in text.partition("ahead at:")[2]


def written(folder: Path, cases: list[dict]) -> str:
    (folder / "kernels").mkdir()
    document = {"environment": H100, "cases": cases}
    (folder / "kernels" / "kernels.json").write_text(json.dumps(document))
    return targets.write_targets(folder)


def test_the_committed_cpu_documents_have_none_of_the_figures() -> None:
    documents = targets.read_documents(readme.REPORTS / "cpu")
    assert documents
    cases = [case for document in documents for case in document["cases"]]
    assert {row.verdict for row in targets.rows(cases, documents[0]["environment"])} == {"not measured"}


def test_the_readme_shows_each_card_that_has_a_folder(tmp_path: Path) -> None:
    assert readme.cards(tmp_path) == readme.NO_CARD
    folder = tmp_path / "h100"
    folder.mkdir()
    text = written(folder, CASES)
    (folder / "kernels" / "kernels.png").write_bytes(b"")
    shown = readme.cards(tmp_path)
    assert shown.startswith(text)
    assert "![kernels on h100](examples/reports/h100/kernels/kernels.png)" in shown
    assert json.loads((folder / "targets.json").read_text())["environment"] == H100


def test_a_folder_without_documents_says_that_nothing_was_measured(tmp_path: Path) -> None:
    text = targets.write_targets(tmp_path)
    assert text.count("not measured") == len(targets.TARGETS)
    assert "No peer ran." in text
