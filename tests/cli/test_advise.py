"""`kvtool advise` as it is typed: its document, its words, the commands that it hands out, and what it refuses."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import typer.main

from kvtool.cli.app import app
from kvtool.results import AdviseDocument, BenchDocument, encode
from tests.cli.in_process import Done, run

Kvtool = Callable[..., Done]
ROOT = Path(__file__).parents[2]
TRACE = ROOT / "tests" / "data" / "traces" / "mooncake_conversation_200.jsonl"
CPU_BENCH, CPU_TIERS = (ROOT / "examples" / "reports" / name for name in ("cpu/bench.json", "cpu-tiers/tiers.json"))
COMMANDS = typer.main.get_group(app).commands


@pytest.fixture
def kvtool(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Kvtool:
    return lambda *args: run(capsys, monkeypatch, "advise", *args)


def parses(command: str) -> bool:
    """Whether kvtool takes the words of each command of the line."""
    for one in command.split(" && "):
        program, name, *words = shlex.split(one)
        found = COMMANDS[name]
        if hasattr(found, "commands"):
            found, *words = (found.commands[words[0]], *words[1:])  # type: ignore[attr-defined]
        assert program == "kvtool"
        assert found.make_context(name, list(words)) is not None
    return True


def test_a_shape_nobody_knows_is_advised_on_as_another(kvtool: Kvtool, tmp_path: Path) -> None:
    odd = tmp_path / "odd.json"
    shape = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    odd.write_text(json.dumps({"model_type": "oddball", "vocab_size": 256, "max_position_embeddings": 8192, **shape}))
    assert "--as FAMILY" in kvtool(str(odd), "--gpu", "h100").err
    done = kvtool(str(odd), "--gpu", "h100", "--as", "llama", "--json")
    assert done.code == 0, done.err
    assert any("because --as says so" in note for note in json.loads(done.out)["assumptions"])


@pytest.mark.parametrize("workload", ["agent", "multi-turn", "ranking", "few-shot", "independent", str(TRACE)])
def test_every_answer_has_its_number_and_a_command_that_parses(kvtool: Kvtool, workload: str) -> None:
    asked = ("--num-gpus", "4", "--goal", "throughput", "--tiers", "dram=64GiB,disk=1TiB@7/4", "--num-prompts", "16")
    done = kvtool("llama-3.1-8b", "--gpu", "h100", "--workload", workload, *asked, "--json")
    assert done.code == 0, done.err
    document = msgspec.json.decode(done.out, type=AdviseDocument)
    assert json.loads(done.out)["schema"] == "kvtool.advise/1"
    assert [one.question for one in document.decisions] == [
        "Is a cache needed?",
        "A prefix cache?",
        "Which cache dtype?",
        "Which page size?",
        "Offload to dram?",
        "Offload to disk?",
        "How are the cards used?",
        "Disaggregate?",
    ]
    for one in document.decisions:
        assert one.value is not None
        assert one.unit
        assert (one.margin is None) == (not one.threshold)
        assert parses(one.command)


def test_out_writes_the_document_its_rows_a_chart_and_a_page(kvtool: Kvtool, tmp_path: Path) -> None:
    done = kvtool("llama-3.1-8b", "--gpu", "h100", "--output-len", "1", "--out", str(tmp_path))
    assert done.code == 0
    assert "No cache needed" in done.out
    rows = list(csv.DictReader((tmp_path / "advise.csv").read_text().splitlines()))
    assert [row["answer"] for row in rows][:2] == ["no cache needed", "no"]
    assert (tmp_path / "advise.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text()
    assert all(row["command"].replace("&&", "&amp;&amp;") in page for row in rows)
    assert json.loads((tmp_path / "advise.json").read_text())["inputs"]["num_gpus"] == 1


def test_markdown_is_a_table(kvtool: Kvtool) -> None:
    done = kvtool("llama-3.1-8b", "--gpu", "h100", "--format", "md", "--price-per-hour", "2.5")
    assert "| Is a cache needed? | yes |" in done.out
    assert "$ for a million output tokens" in " ".join(done.out.split())


def test_a_machine_that_was_measured_takes_the_place_of_a_card(kvtool: Kvtool) -> None:
    done = kvtool("smollm2-135m", "--profile", f"{CPU_BENCH},{CPU_TIERS}", "--input-len", "512", "--json")
    document = msgspec.json.decode(done.out, type=AdviseDocument)
    measured = msgspec.json.decode(CPU_BENCH.read_bytes(), type=BenchDocument)
    assert document.inputs["gpu"] == measured.environment["cpu"]
    assert any("as measured in bench.json" in line for line in document.assumptions)
    assert "Offload to dram?" in [one.question for one in document.decisions]


def test_a_bench_document_without_its_bandwidth_is_refused(kvtool: Kvtool, tmp_path: Path) -> None:
    document = msgspec.json.decode(CPU_BENCH.read_bytes())
    for case in document["cases"]:
        case["roofline"]["read_gbps_measured"] = None
    (tmp_path / "bench.json").write_bytes(encode(document))
    done = kvtool("smollm2-135m", "--profile", str(tmp_path / "bench.json"))
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "has no measured bandwidth" in done.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "which card? name it with --gpu"),
        (("--gpu", "h100", "--goal", "fun"), "--goal 'fun' is not one of latency, throughput, money"),
        (("--gpu", "h100", "--num-gpus", "0"), "--num-gpus 0 must be from 1 to 4096"),
        (("--gpu", "h100", "--concurrency", "0"), "--concurrency 0 must be from 1"),
        (("--gpu", "h100", "--price-per-hour", "0"), "--price-per-hour 0 must be above 0"),
        (
            ("--gpu", "h100", "--goodput", "ttft:0.01"),
            "serve no request of 4,352 tokens of llama-3.1-8b within the limits",
        ),
        (("--gpu", "h100", "--workload", "chat"), "workload 'chat' is neither a file nor one of"),
        (("--gpu-memory", "24GiB"), "has no known rate or bandwidth"),
    ],
)
def test_what_cannot_be_advised_is_refused_in_one_line(kvtool: Kvtool, args: tuple[str, ...], message: str) -> None:
    done = kvtool("llama-3.1-8b", *args)
    assert (done.code, len(done.err.strip().splitlines())) == (2, 1)
    assert message in done.err


def test_a_model_that_the_cards_do_not_hold_is_refused(kvtool: Kvtool) -> None:
    done = kvtool("llama-3.1-405b", "--gpu", "h100", "--num-gpus", "2")
    assert (done.code, len(done.err.strip().splitlines())) == (2, 1)
    assert "2 x H100-SXM-80GB serve no request" in done.err
