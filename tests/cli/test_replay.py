"""`kvtool replay` and `kvtool trace check` as users run them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from kvtool.results import ReplayDocument, read_document
from tests.cli.in_process import run

TRACE = Path(__file__).parents[1] / "data" / "traces" / "mooncake_conversation_200.jsonl"
Capture = pytest.CaptureFixture[str]


def test_json_is_one_document(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(capsys, monkeypatch, "replay", str(TRACE), "--policy", "lru,optimal", "--capacity", "100,none", "--json")
    assert (done.code, done.err) == (0, "")
    document = json.loads(done.out)
    assert document["schema"] == "kvtool.replay/1"
    assert {"name", "sha256", "requests", "block_size", "total_blocks", "unique_blocks", "input_tokens"} <= set(
        document["trace"]
    )
    assert [(row["policy"], row["capacity_blocks"]) for row in document["rows"]] == [
        ("lru", 100), ("lru", None), ("optimal", 100), ("optimal", None),
    ]  # fmt: skip
    assert {
        "capacity_bytes", "hit_blocks", "total_blocks", "block_hit_ratio", "token_hit_ratio",
        "mean_request_token_hit_ratio", "ceiling_content", "ceiling_relaxed", "ceiling_strict", "limited_by",
        "ttft_saved_ms",
    } <= set(document["rows"][0])  # fmt: skip
    assert "head to tail" in document["definition"]["insertion"]


def test_the_table_and_what_follows_from_it(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(capsys, monkeypatch, "replay", str(TRACE), "--capacity", "100,none")
    assert done.code == 0
    assert done.out.startswith("Without a limit of capacity")
    assert "from there on more capacity gives less" in done.out
    assert max(map(len, done.out.splitlines())) <= 100


def test_several_traces_are_one_sweep(capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same trace twice has the same rows, and a folder each."""
    both = (f"{TRACE},{TRACE}", "--policy", "lru,fifo", "--capacity", "100")
    done = run(capsys, monkeypatch, "replay", *both, "--json", "--out", str(tmp_path))
    document = json.loads(done.out)
    assert document["schema"] == "kvtool.replays/1"
    first, second = document["replays"]
    assert first == second
    assert len((tmp_path / "replay.csv").read_text().splitlines()) == 5
    for folder in (TRACE.stem, f"{TRACE.stem}-2"):
        assert (tmp_path / folder / "report.html").is_file()
    assert "Hits of a prefix cache, 2 traces" in run(capsys, monkeypatch, "replay", *both).out


def test_out_writes_every_form(capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = ["--policy", "lru,fifo", "--capacity", "1GiB,none", "--gpu", "h100", "--out", str(tmp_path)]
    assert run(capsys, monkeypatch, "replay", str(TRACE), "llama-3.1-8b", *arguments).code == 0
    document = read_document(tmp_path / "replay.json", ReplayDocument)
    with (tmp_path / "replay.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["policy"], row["capacity_blocks"]) for row in rows] == [
        ("lru", "16"), ("lru", ""), ("fifo", "16"), ("fifo", ""),
    ]  # fmt: skip
    with (tmp_path / "replay-curve.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(document.curves[0].points)
    assert (tmp_path / "replay.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text()
    assert "ms saved a request" in page
    assert document.trace.sha256 in page


def test_names_out_of_logs_are_escaped(capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bad = tmp_path / "<script>alert(1)</script>$.jsonl".replace("/", "")
    bad.write_bytes(TRACE.read_bytes())
    assert run(capsys, monkeypatch, "replay", str(bad), "--out", str(tmp_path / "out")).code == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_a_line_that_cannot_be_decoded_is_exit_2(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(TRACE.read_bytes() + b'{"timestamp": "soon"}\n')
    for command in (("replay",), ("trace", "check")):
        done = run(capsys, monkeypatch, *command, str(bad))
        assert (done.code, done.out) == (2, "")
        assert "bad.jsonl, line 201: Expected `float`, got `str`" in done.err
        assert done.err.count("\n") == 1


def test_warnings_go_beside_the_json(capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backwards = tmp_path / "backwards.jsonl"
    backwards.write_bytes(b"".join(reversed(TRACE.read_bytes().splitlines(keepends=True))))
    done = run(capsys, monkeypatch, "replay", str(backwards), "--json")
    assert done.code == 0
    assert "times fall" in done.err
    assert json.loads(done.out)["warnings"] == [done.err.removeprefix("kvtool: ").strip()]


def test_a_clean_trace_is_exit_0_and_an_odd_one_exit_1(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run(capsys, monkeypatch, "trace", "check", str(TRACE)).code == 0
    odd = tmp_path / "odd.jsonl"
    odd.write_text(
        '{"timestamp": 5, "input_length": 1024, "hash_ids": [1, 2]}\n'
        '{"timestamp": 9, "input_length": 1024, "hash_ids": [3, 2]}\n'
        '{"timestamp": 7, "input_length": 2000, "hash_ids": [1]}\n'
    )
    done = run(capsys, monkeypatch, "trace", "check", str(odd), "--json")
    assert done.code == 1
    document = json.loads(done.out)
    assert document["schema"] == "kvtool.trace/1"
    assert [(finding["kind"], finding["line"]) for finding in document["findings"]] == [
        ("chain", 2), ("time_unsorted", 3), ("block_count", 3),
    ]  # fmt: skip
    assert set(document["findings"][0]) >= {"kind", "line", "tokens_lost", "ms_lost", "remedy"}
    assert "block 2 stands behind another block" in run(capsys, monkeypatch, "trace", "check", str(odd)).out


@pytest.mark.parametrize("command", [("replay", str(TRACE)), ("trace", "check", str(TRACE))])
def test_no_torch_is_imported(command: tuple[str, ...]) -> None:
    code = (
        "import sys; from kvtool.cli import main; sys.argv[0] = 'kvtool'\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'triton', 'pandas', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True)


def test_a_shape_nobody_knows_has_bytes_as_another(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    odd = tmp_path / "odd.json"
    shape = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    odd.write_text(json.dumps({"model_type": "oddball", "vocab_size": 256, **shape}))
    done = run(capsys, monkeypatch, "replay", str(TRACE), str(odd), "--as", "llama", "--capacity", "100", "--json")
    assert any("because --as says so" in note for note in json.loads(done.out)["assumptions"])
