from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from kvtool.cli import main
from kvtool.cli.compare import parse_percent
from kvtool.results import encode
from kvtool.system.errors import KvtoolError
from tests.compare.example import document


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs `kvtool compare ...`: exit code, stdout, stderr."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kvtool", "compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        output = capsys.readouterr()
        return int(stopped.value.code or 0), output.out, output.err

    return call


@pytest.fixture
def docs(tmp_path: Path) -> dict[str, Path]:
    made = {
        "base": document(noise_seed=1),
        "same": document(noise_seed=2),
        "slow": document(noise_seed=3, tpot_factor=1.3),
    }
    for name, content in made.items():
        (tmp_path / f"{name}.json").write_bytes(encode(content))
    return {name: tmp_path / f"{name}.json" for name in made}


def test_documents_as_json(run, docs: dict[str, Path]) -> None:
    code, out, _ = run(docs["base"], docs["same"], docs["slow"], "--json")
    found = json.loads(out)
    assert code == 0
    assert found["schema"] == "kvtool.compare/1"
    assert found["baseline"] == str(docs["base"])
    assert set(found["rows"][0]) == {
        "case", "metric", "unit", "a", "b", "ratio", "ci_low", "ci_high", "verdict", "document",
        "p_value", "noise", "n", "equal_speed_ratio", "speed",
    }  # fmt: skip
    assert {row["document"] for row in found["rows"]} == {str(docs["same"]), str(docs["slow"])}


def test_a_regression_fails_the_command_and_is_named(run, docs: dict[str, Path]) -> None:
    assert run(docs["base"], docs["same"], "--fail-on-regression", "5%")[0] == 0
    code, out, err = run(docs["base"], docs["slow"], "--fail-on-regression", "5%", "--json")
    assert code == 1
    assert json.loads(out)["rows"]
    assert "regression:" in err
    assert "tpot_ms slower by" in err
    assert run(docs["base"], docs["slow"], "--fail-on-regression", "50%")[0] == 0


def test_models_as_json_and_as_a_table(run, tmp_path: Path) -> None:
    code, out, _ = run("llama-3.1-8b", "qwen3-8b", "--context", "8k,32k", "--tp", "1,8", "--json", "--out", tmp_path)
    found = json.loads(out)
    assert (code, found["schema"], len(found["rows"])) == (0, "kvtool.compare/1", 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "compare.csv", "compare.json", "compare.png", "report.html",
    ]  # fmt: skip
    code, out, _ = run("llama-3.1-8b", "qwen3-8b")
    assert code == 0
    assert "Qwen3-8B" in out


def test_models_with_the_flags_of_size(run) -> None:
    options = ("--context", "8k", "--tp", "8", "--enable-dp-attention", "--dp", "8", "--shared-prefix", "4k")
    more = ("--weight-dtype", "bf16", "--index-dtype", "bf16", "--mamba-ssm-cache-dtype", "fp32")
    engine = ("--engine", "vllm", "--kv-cache-memory-bytes", "20GiB", "--max-num-batched-tokens", "4096")
    code, out, _ = run("deepseek-v3.2", "qwen3-next-80b-a3b-instruct", *options, *more, "--json")
    rows = json.loads(out)["rows"]
    assert code == 0
    assert {(r["inputs"]["shared_prefix"], r["inputs"]["enable_dp_attention"]) for r in rows} == {(4096, True)}
    assert [r["inputs"]["weight_dtype"] for r in rows] == ["bf16", "bf16"]
    assert rows[0]["kv"]["indexer_bytes_per_token"] == 61 * 128 * 2
    assert rows[1]["kv"]["state_bytes_per_sequence"] > 36 * 32 * 128 * 128 * 4  # fp32 states, and convolutions
    code, out, _ = run("llama-3.1-8b", "qwen3-8b", "--context", "8k", "--max-model-len", "16k", *engine, "--json")
    plans = [row["engine"] for row in json.loads(out)["rows"]]
    assert [(plan["max_model_len"], plan["max_num_batched_tokens"]) for plan in plans] == [(16384, 4096)] * 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["llama-3.1-8b"], "two or more"),
        (["base", "llama-3.1-8b"], "name only documents, or only models"),
        (["base", "same", "--tp", "2"], "--tp is for models"),
        (["base", "same", "--fail-on-regression", "0.05"], "write 5%"),
        (["llama-3.1-8b", "qwen3-8b", "--fail-on-regression", "5%"], "is for bench documents"),
        (["llama-3.1-8b", "qwen3-8c"], "qwen3-8b"),
        (["llama-3.1-8b", "qwen3-8b", "--tp", "0"], "tp 0"),
        (["llama-3.1-8b", "qwen3-8b", "--tp", "3"], "tp 3"),
        (["base", "same", "--weight-dtype", "fp8"], "--weight-dtype is for models"),
        (["llama-3.1-8b", "qwen3-8b", "--context", "x"], "'x'"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(run, docs: dict[str, Path], arguments: list[str], words: str) -> None:
    code, out, err = run(*(docs.get(argument, argument) for argument in arguments))
    assert code == 2
    assert out == ""
    assert words.lower() in err.lower()
    assert len(err.splitlines()) == 1


def test_percentages() -> None:
    assert parse_percent("5%") == 0.05
    assert parse_percent("2.5 %") == 0.025
    for text in ("5", "-5%", "%", "nan%", ""):
        with pytest.raises(KvtoolError, match="is not a percentage"):
            parse_percent(text)


ODD = {
    "model_type": "oddball",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}


def test_a_shape_nobody_knows_is_read_as_another_and_said_so(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    odd = tmp_path / "odd.json"
    odd.write_text(json.dumps(ODD))
    code, _, error = run(odd, "llama-3.1-8b", "--context", "8k")
    assert (code, "--as FAMILY" in error) == (2, True)
    code, out, _ = run(odd, "llama-3.1-8b", "--context", "8k", "--as", "llama")
    assert (code, "assumed: odd is read as llama, because --as says so" in " ".join(out.split())) == (0, True)
    releases = ("--engine", "vllm==0.25,vllm==0.26", "--kv-cache-memory-bytes", "40GiB", "--context", "8k")
    _, out, _ = run(odd, *releases, "--max-model-len", "8k", "--as", "llama", "--json")
    assert any("because --as says so" in note for note in json.loads(out)["assumptions"])
    code, _, error = run("qwen3-8b", "llama-3.1-8b", "--as", "llama")
    assert (code, "it knows qwen3-8b and llama-3.1-8b" in error) == (2, True)
