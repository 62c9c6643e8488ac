from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import pytest

from tests.cli.in_process import kvtool, run

ROOT = Path(__file__).parents[2]


def rows(*args: str) -> list[dict[str, dict[str, object]]]:
    done = kvtool("size", *args, "--json")
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert document["schema"] == "kvtool.size/1"
    return document["rows"]  # type: ignore[no-any-return]


def test_json_is_one_document_and_nothing_else() -> None:
    (row,) = rows("llama-3.1-8b", "--context", "8k")
    assert row["inputs"]["context"] == 8192
    assert row["kv"]["bytes_per_token"] == 131_072
    assert row["weights"]["bytes"] == 16_060_522_496
    assert row["fit"]["fits"] is None


def test_lists_make_rows() -> None:
    found = rows("llama-3.1-8b", "--context", "4k,1m", "--batch-size", "1,8", "--kv-cache-dtype", "bf16,int8")
    assert len(found) == 8
    assert {row["inputs"]["context"] for row in found} == {4096, 1 << 20}


def test_a_shape_instead_of_a_model() -> None:
    (row,) = rows("--layers", "96", "--heads", "96", "--kv-heads", "8", "--head-dim", "128", "--context", "8k")
    assert row["kv"]["bytes_per_token"] == 2 * 96 * 8 * 128 * 2
    assert row["weights"]["bytes"] is None


def test_a_card_gives_a_verdict_and_an_exit_code() -> None:
    fits = kvtool("size", "llama-3.1-8b", "--context", "8k", "--gpu", "h100")
    assert fits.returncode == 0
    assert "KV 1 GiB fits, 55.1 GiB to spare" in fits.stdout
    too_large = kvtool("size", "llama-3.1-70b", "--context", "8k", "--gpu", "h100")
    assert too_large.returncode == 1
    first = " ".join(too_large.stdout.partition("meta-llama")[0].split())
    assert "8k x 1 in bf16: no: " in first
    assert "would do: --tp 2: gains 65.7 GiB; a second card " in first  # 2.8 GiB to spare, as public starts show
    some = kvtool("size", "llama-3.1-8b", "--context", "8k", "--batch-size", "1,10000", "--gpu", "h100")
    assert some.returncode == 0


def test_explain_prints_the_formula() -> None:
    done = kvtool("size", "llama-3.1-8b", "--context", "8k", "--explain")
    assert "2 x 32 layers x 8 KV heads x 128 x 2 B = 131,072 B/token" in done.stdout
    with_json = kvtool("size", "llama-3.1-8b", "--context", "8k", "--explain", "--json")
    json.loads(with_json.stdout)
    assert "131,072 B/token" in with_json.stderr


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize(
    "args",
    [
        ("llama-3.1-8b", "--kv-cache-dtype", "bf16,int8_per_token_head", "--gpu", "h100", "--batch-size", "1,256"),
        ("deepseek-v3.2", "--tp", "8", "--gpu", "h200", "--context", "1m"),
        ("nemotron-nano-9b-v2", "--context", "100000"),
    ],
)
def test_tables_keep_to_the_width(args: Sequence[str], columns: int) -> None:
    lines = kvtool("size", *args, columns=columns).stdout.splitlines()
    assert max(map(len, lines)) <= columns
    # A value broken over two lines would leave fragments: every line of the table has all of its cells.
    title = next(i for i, line in enumerate(lines) if line.startswith("KV cache in"))
    rule = next(i for i, line in enumerate(lines) if i > title and "──" in line)
    body = list(takewhile(lambda line: not line.startswith("In pages"), lines[rule + 1 :]))
    assert body
    assert len({len(line.split()) for line in body}) == 1


def test_out_writes_its_files(tmp_path: Path) -> None:
    done = kvtool("size", "llama-3.1-8b", "--context", "8k", "--gpu", "h100", "--out", str(tmp_path / "new"))
    assert done.returncode == 0
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["size-budget.png", "size.csv", "size.json", "size.png"]
    kvtool("size", "llama-3.1-8b", "--context", "8k", "--out", str(tmp_path / "no-card"))
    names = sorted(path.name for path in (tmp_path / "no-card").iterdir())
    assert names == ["size.csv", "size.json", "size.png"]


def test_flags_of_formats_drafts_and_layouts_reach_the_document(tmp_path: Path) -> None:
    flags = ["--kv-cache-dtype", "fp8", "--index-dtype", "fp4", "--num-speculative-tokens", "1", "--context", "8k"]
    layout = ["--tp", "8", "--dp", "8", "--enable-dp-attention", "--batch-size", "16", "--json"]
    done = kvtool("size", "deepseek-v3.2", *flags, *layout)
    assert done.returncode == 0
    row = json.loads(done.stdout)["rows"][0]
    assert (row["inputs"]["num_speculative_tokens"], row["inputs"]["enable_dp_attention"]) == (1, True)
    assert row["inputs"]["num_gpus"] == 8
    assert row["kv"]["indexer_bytes_per_token"] == 62 * 68
    assert row["kv"]["bytes_per_gpu"] == 2 * 62 * (656 + 68) * 8192
    assert row["layers"][0]["bits_per_element"] == 656 * 8 / 576


def test_a_layer_spec_is_a_model(tmp_path: Path) -> None:
    spec = tmp_path / "mine.yaml"
    spec.write_text(
        "{num_heads: 32, hidden_size: 4096, layers: "
        "[{count: 32, kind: full, kv_heads: 8, k_head_dim: 128, v_head_dim: 128}]}"
    )
    done = kvtool("size", "--layer-spec", str(spec), "--context", "8k", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["rows"][0]["kv"]["bytes_per_token"] == 131_072


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["llama-3.1-9b"], "unknown model 'llama-3.1-9b': did you mean"),
        (["llama-3.1-8b", "--context", "-5"], "context '-5' is not a number of tokens"),
        (["llama-3.1-8b", "--context", "0"], "context '0' must be a whole number of tokens from 1"),
        (["llama-3.1-8b", "--context", "9999999999999"], "must be a whole number of tokens from 1 to"),
        (["llama-3.1-8b", "--batch-size", "1,x"], "batch size 'x' is not a whole number"),
        (["llama-3.1-8b", "--batch-size", "0"], "batch size 0 must be from 1"),
        (["llama-3.1-8b", "--kv-cache-dtype", "fp9"], "unknown KV cache dtype 'fp9': use one of auto, fp32"),
        (["llama-3.1-8b", "--weight-dtype", "int3"], "unknown weight dtype 'int3'"),
        (["llama-3.1-8b", "--mamba-ssm-cache-dtype", "fp8"], "unknown mamba ssm cache dtype 'fp8'"),
        (["llama-3.1-8b", "--block-size", "0"], "block size 0 must be from 1"),
        (["llama-3.1-8b", "--tp", "3"], "tp 3 does not divide the 32 query heads"),
        (["llama-3.1-8b", "--pp", "0"], "pp 0 must be at least 1"),
        (["llama-3.1-8b", "--gpu", "h1000"], "unknown gpu 'h1000': did you mean"),
        (["llama-3.1-8b", "--gpu-memory-utilization", "nan"], "gpu memory utilization nan must be above 0"),
        (["llama-3.1-8b", "--layers", "3"], "'llama-3.1-8b' already has a shape: leave out --layers"),
        (["llama-3.1-8b", "--kv-cache-dtype", "fp8_ds_mla"], "a fp8_ds_mla cache holds rows of MLA"),
        (["llama-3.1-8b", "--index-dtype", "fp4"], "--index-dtype fp4 means nothing for meta-llama/Llama-3.1-8B"),
        (["llama-3.1-8b", "--num-speculative-tokens", "1"], "no draft layers (MTP) of meta-llama/Llama-3.1-8B"),
        (["llama-3.1-8b", "--tp", "8", "--dp", "3", "--enable-dp-attention"], "dp 3 does not divide tp 8"),
        (["llama-3.1-8b", "--layer-spec", "x.yaml"], "--layer-spec x.yaml is a model of its own: leave out MODEL"),
        (["--layer-spec", "/nowhere/x.yaml"], "cannot read /nowhere/x.yaml"),
        ([], "name a MODEL, or give --layers"),
        (["llama-3.1-8b", "--out", "/dev/null/x"], "--out /dev/null/x: cannot make this folder"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(args: list[str], message: str) -> None:
    done = kvtool("size", *args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("kvtool: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; sys.argv = ['kvtool', 'size', 'llama-3.1-8b', '--gpu', 'h100'];"
        "from kvtool.cli.app import app; app(standalone_mode=False);"
        "print([m for m in ('torch', 'triton', 'numpy', 'pandas', 'matplotlib') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", "import kvtool.cli;" + code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("arguments", [(), ("--json",), ("--explain",)])
def test_a_reader_that_goes_away_is_no_answer(arguments: tuple[str, ...]) -> None:
    """`kvtool size ... | head -c1`: the pipe closes, and the exit code still says that the answer was found."""
    contexts = ",".join(str(1024 * step) for step in range(1, 400))
    command = [
        sys.executable,
        "-c",
        "from kvtool.cli import main; main()",
        "size",
        "llama-3.1-8b",
        "--context",
        contexts,
        *arguments,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_the_answer_stands_in_line_1_and_all_of_it_on_one_screen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = run(capsys, monkeypatch, "size", "llama-3.1-8b", "--gpu", "h100").out.splitlines()
    assert lines[:2] == [
        "1 x H100-SXM-80GB: all 3 fit; the largest, 128k x 1 in bf16, with 40.1 GiB to spare.",
        "Its cache passes the weights at 122,529 tokens.",
    ]
    assert len(lines) <= 22
    assert max(map(len, lines)) <= 100
    assert not any(line.endswith(" ") for line in lines)


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (
            "--context 128k --batch-size 16",
            "1 x H100-SXM-80GB, 128k x 16 in bf16: no: 200 GiB short. Each of these alone ",
        ),
        (
            "--context 8k,128k --batch-size 16",
            "1 x H100-SXM-80GB: 1 of 2 fit; the largest that does, 8k x 16 in bf16, with ",
        ),
        ("--context 64k,128k --batch-size 16", "1 x H100-SXM-80GB: none of 2 fits; the least, 64k x 16 in bf16: no: "),
    ],
)
def test_a_no_stands_in_line_1_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: str, answer: str
) -> None:
    done = run(capsys, monkeypatch, "size", "llama-3.1-8b", "--gpu", "h100", *options.split())
    assert done.out.startswith(answer)
