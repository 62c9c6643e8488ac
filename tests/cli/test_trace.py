"""`kvtool trace make`, `import` and `misses` as users run them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.in_process import run

TRACE = Path(__file__).parents[1] / "data" / "traces" / "agents_6.jsonl.gz"
Capture = pytest.CaptureFixture[str]


def test_a_made_trace_is_checked_replayed_and_explained(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = str(tmp_path / "chats.jsonl.gz")
    done = run(capsys, monkeypatch, "trace", "make", "multi-turn", made, "--num-sessions", "5", "--json")
    document = json.loads(done.out)
    assert (done.code, document["schema"], document["statistics"]["sessions"]) == (0, "kvtool.trace/1", 5)
    assert run(capsys, monkeypatch, "trace", "check", made).code == 0
    misses = run(
        capsys, monkeypatch, "trace", "misses", made, "--capacity", "20", "--model", "llama-3.1-8b", "--gpu", "h100"
    )
    assert misses.code == 0
    assert "evicted" in misses.out
    assert "give the cache more room" in misses.out


def test_a_log_says_why_it_misses_and_becomes_a_trace(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rules = "You answer questions about the caches of inference engines, in short words and without riddles. " * 3
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"prompt": f"It is 15:3{n}. {rules}"}) + "\n" for n in range(3)))
    done = run(capsys, monkeypatch, "trace", "misses", str(log), "--json")
    document = json.loads(done.out)
    (finding,) = document["findings"]
    assert (done.code, finding["kind"], finding["line"], finding["ms_lost"]) == (0, "timestamp", 2, None)
    assert sum(document["missed_tokens"].values()) == document["trace"]["input_tokens"]
    two = [tmp_path / name for name in ("a.txt", "b.txt")]
    for number, path in enumerate(two):
        path.write_text(f"Worker {number}. {rules}")
    assert "counter" in run(capsys, monkeypatch, "trace", "misses", *map(str, two)).out
    refused = run(capsys, monkeypatch, "trace", "import", str(log), str(tmp_path / "out.jsonl"))
    assert (refused.code, refused.err) == (
        2, "kvtool: line 1 has text: --tokenizer FOLDER names the model's tokenizer.json and template\n",
    )  # fmt: skip
    ids = tmp_path / "ids.jsonl"
    ids.write_text('{"prompt": [1, 2, 3, 4, 5]}\n{"prompt": [1, 2, 3, 4, 6]}\n')
    out = str(tmp_path / "out.jsonl")
    assert run(capsys, monkeypatch, "trace", "import", str(ids), out, "--block-size", "4").code == 0
    assert "25.0 % of blocks hit" in run(capsys, monkeypatch, "replay", out).out


def test_tiers_and_a_cluster_are_shown(capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = str(tmp_path / "agents.jsonl")
    assert run(capsys, monkeypatch, "trace", "make", "agents", made, "--num-sessions", "3", "--max-len", "2k").code == 0
    arguments = ["llama-3.1-8b", "--gpu", "h100", "--capacity", "512MiB", "--tiers", "dram=64GiB,disk=1TiB@7/4"]
    done = run(
        capsys, monkeypatch, "replay", made, *arguments, "--cluster", "prefill=1,decode=2", "--out", str(tmp_path)
    )
    assert done.code == 0, done.err
    for said in ("Below 512 MiB tiers save", "Load or compute", "1 prefill and 2 decode nodes", "decode cnic write"):
        assert said in done.out
    document = json.loads((tmp_path / "replay.json").read_text())
    assert document["cluster"]["range"] == [1 / 7, 3.5]
    assert {"mode", "prefill", "decode", "range", "links", "agents_per_s"} <= document["cluster"].keys()
    assert (tmp_path / "replay-tiers.csv").read_text().count("\n") == 3
    for name, lines in (("clock", 2), ("break-even", 9), ("cluster", 4), ("links", 25)):
        assert (tmp_path / f"replay-{name}.csv").read_text().count("\n") == lines
    assert (tmp_path / "replay-clock.png").read_bytes().startswith(b"\x89PNG")
    assert "Load or compute" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("option", "said"),
    [(("--loading", "bulk"), "--loading bulk says nothing without --tiers"),
     (("--goodput", "ttft:4000"), "--goodput ttft:4000 says nothing without --tiers or --cluster"),
     (("--tiers", "dram=1GiB"), "--tiers need a MODEL and a card"),
     (("--cluster", "prefill=1,decode=1"), "--cluster needs a MODEL and a card")],
)  # fmt: skip
def test_what_says_nothing_alone_is_refused(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, option: tuple[str, str], said: str
) -> None:
    done = run(capsys, monkeypatch, "replay", str(TRACE), *option)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
