"""The table of peers: kvtool's columns are worked out again, the peers' are those recorded."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "peers"
PAGE = (FOLDER / "README.md").read_text()
CASES = json.loads((FOLDER / "cases.json").read_text())
ANSWERS = json.loads((FOLDER / "answers.json").read_text())
CELL = re.compile(r"refuses|(?P<size>[\d.]+ [KMGT]?i?B) \((?:exact|(?P<ratio>[\d.]+)x)\)")
CONFIGS = FOLDER.parents[1] / "tests" / "data" / "vllm_configs"


def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return __import__("peers")


def table(start: str) -> list[list[str]]:
    lines = PAGE[PAGE.index(start) :].partition("\n\n")[0].splitlines()
    return [line.strip("| ").split(" | ") for line in (lines[0], *lines[2:])]


def test_the_page_is_what_the_script_prints() -> None:
    done = subprocess.run([sys.executable, str(FOLDER / "peers.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == PAGE


def test_every_config_is_a_case_and_every_peer_answered_it() -> None:
    assert {case["config"] for case in CASES} == {path.name for path in CONFIGS.glob("*.json")}
    assert list(ANSWERS) == [case["case"] for case in CASES]
    for given in ANSWERS.values():
        assert set(given) == {"hf-mem", "kvfit", "vramscout"}
        assert all((answer["bytes"] is None) != (answer["refusal"] is None) for answer in given.values())


def test_a_case_is_of_one_gpu_with_nothing_changed() -> None:
    for case in CASES:
        model, tag, gpu, layout, dtype, length, _ = case["case"].split("|")
        assert model.replace("/", "--") == case["config"].removesuffix(".json")
        assert (tag, gpu, layout, dtype) == ("base", "h100", "tp1pp1", "kv=auto")
        assert length == f"len={case['max_model_len']}"


def test_the_table_gives_each_number_over_what_vllm_allocates() -> None:
    header, *rows = table("| model |")
    assert [row[0] for row in rows] == [case["case"].split("|")[0] for case in CASES]
    names = [name.split()[0] for name in header]
    for case, row in zip(CASES, rows, strict=True):
        for peer, answer in ANSWERS[case["case"]].items():
            found = CELL.fullmatch(row[names.index(peer)])
            assert found
            if answer["bytes"] is None:
                assert found[0] == "refuses"
            elif answer["bytes"] == case["allocated_bytes"]:
                assert found[0].endswith("(exact)")
            else:
                share = answer["bytes"] / case["allocated_bytes"]
                assert float(found["ratio"]) == pytest.approx(share, rel=6e-3, abs=6e-4)


def test_kvtool_plans_every_model_exactly_as_vllm_allocates(monkeypatch: pytest.MonkeyPatch) -> None:
    script = peers(monkeypatch)
    for case in script.cases():
        assert script.says(case, ANSWERS)[script.ENGINE] == case.allocated_bytes, case.model


@pytest.mark.parametrize(
    ("model", "logical_bytes"),
    [
        ("deepseek-ai/DeepSeek-V3", 61 * (512 + 64) * 2 * 32768),
        ("meta-llama/Meta-Llama-3.1-8B", 2 * 32 * 8 * 128 * 2 * 32768),
        ("mistralai/Mistral-7B-v0.1", 2 * 32 * 8 * 128 * 2 * 4096),
        ("openai/gpt-oss-120b", 2 * 18 * 8 * 64 * 2 * (32768 + 128)),
    ],
)
def test_logical_bytes_are_those_worked_out_by_hand(
    model: str, logical_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = peers(monkeypatch)
    (case,) = [case for case in script.cases() if case.model == model]
    assert script.says(case, ANSWERS)[script.LOGICAL] == logical_bytes


def test_peers_are_wrong_where_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSeek-V3 in hf-mem 0.5.6: 2 x 61 layers x 128 heads x (7168 / 128), for it takes MLA for MHA."""
    (case,) = [case for case in CASES if case["case"].startswith("deepseek-ai/DeepSeek-V3|")]
    assert ANSWERS[case["case"]]["hf-mem"]["bytes"] == 2 * 61 * 128 * 56 * 2 * 32768
    assert peers(monkeypatch).ratio(2 * 61 * 128 * 56 * 2 * 32768 / case["allocated_bytes"]) == "24.9x"


@pytest.mark.network
def test_the_peers_still_answer_as_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        asked = peers(monkeypatch).ask_peers(tmp_path / "venv")
    except subprocess.CalledProcessError as error:
        if "pip" not in error.cmd:
            raise
        pytest.skip("the peers cannot be installed: no package registry")
    assert json.loads(asked) == ANSWERS
