"""`kvtool size` about the memory of a card: --users, --lengths, --tiers, --calibration, --shared-prefix."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from kvtool.results import encode
from tests.cli.in_process import Done, run
from tests.report.machine.example import DOCUMENT as PROFILE

Size = Callable[..., Done]
CALIBRATION = '{"schema": "kvtool.calibration/1", "source": "a log of vLLM", "kv_pool_bytes": 54000000000}'


@pytest.fixture
def size(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Size:
    def call(*args: str) -> Done:
        return run(capsys, monkeypatch, "size", "llama-3.1-8b", *args)

    return call


H100 = ("--gpu", "h100", "--gpu-memory", "80GB")  # the counts below were worked out for 80e9 bytes


def document(done: Done) -> dict[str, list[dict[str, object]]]:
    found = json.loads(done.out)
    assert found["schema"] == "kvtool.size/1"
    return found  # type: ignore[no-any-return]


def test_users_and_context_find_gpus_and_dtype(size: Size) -> None:
    done = size(*H100, "--users", "64", "--context", "32k", "--json")
    assert done.code == 0
    found = document(done)["solutions"]
    assert (found[0]["num_gpus"], found[0]["kv_cache_dtype"]) == (
        4,
        "bf16",
    )  # with 0.95 of the cards and 2,048 batched tokens
    assert str(found[0]["vllm"]).startswith("vllm serve meta-llama/Llama-3.1-8B --tensor-parallel-size 4 ")
    assert str(found[0]["sglang"]).startswith("python -m sglang.launch_server --model-path meta-llama/Llama-3.1-8B ")


def test_what_is_given_is_not_tried(size: Size) -> None:
    done = size("--gpu", "h100", "--users", "64", "--context", "32k", "--tp", "8", "--kv-cache-dtype", "bf16", "--json")
    assert [(s["num_gpus"], s["kv_cache_dtype"]) for s in document(done)["solutions"]] == [(8, "bf16")]


def test_open_users_and_open_context(size: Size) -> None:
    fixed = ("--tp", "1", "--kv-cache-dtype", "bf16", "--weight-dtype", "auto", *H100, "--json")
    (most,) = document(size("--users", "max", "--context", "8k", *fixed))["solutions"]
    assert most["users"] == 52
    (longest,) = document(size("--users", "64", *fixed))["solutions"]
    assert longest["context"] == 6672  # 417 blocks of 16 in vLLM's plan; SGLang takes one token less
    assert "--context-length 6671 " in longest["sglang"]


def test_nothing_fits_exits_1(size: Size) -> None:
    done = size("--gpu", "h100", "--users", "1000", "--context", "128k")
    assert done.code == 1
    assert done.out.startswith("Nothing that was tried fits")


def test_no_users_no_solutions(size: Size) -> None:
    found = document(size("--context", "8k", "--json"))
    assert found["solutions"] is None
    assert found["rows"][0]["sharing"] is found["rows"][0]["tiers"] is found["rows"][0]["lengths"] is None


def test_a_shape_has_no_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    facts = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 8}
    facts |= {"hidden_size": 512, "intermediate_size": 1024, "vocab_size": 1000, "max_position_embeddings": 4096}
    config.write_text(json.dumps(facts))
    args = ("--gpu", "h100", "--users", "4", "--context", "1k", "--json")
    (first, *_) = document(run(capsys, monkeypatch, "size", str(config), *args))["solutions"]
    assert first["vllm"] is None
    assert "needs an id on the Hub or a folder" in str(first["reason"])
    (first, *_) = document(run(capsys, monkeypatch, "size", str(tmp_path), *args))["solutions"]
    assert str(first["vllm"]).startswith(f"vllm serve {tmp_path} ")


def test_a_calibration_takes_the_place_of_the_estimates(size: Size, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(CALIBRATION)
    done = size("--gpu", "h100", "--context", "8k", "--calibration", str(path), "--explain")
    assert "A GPU: 50.29 GiB for cache, as given." in done.out
    assert "measured, not estimated: kv_pool_bytes 50.29 GiB a GPU (a log of vLLM)" in done.out.replace("\n", " ")
    (row,) = document(size("--gpu", "h100", "--context", "8k", "--calibration", str(path), "--json"))["rows"]
    fit = row["fit"]
    assert isinstance(fit, dict)
    assert (fit["kv_pool_bytes"], fit["margin_bytes"], fit["measured"]) == (54_000_000_000, 0, ["kv_pool_bytes"])


def test_engine_limits_move_the_pool(size: Size) -> None:
    def pool(*args: str) -> int:
        (row,) = document(size("--gpu", "h100", "--context", "8k", "--json", *args))["rows"]
        return row["fit"]["kv_pool_bytes"]  # type: ignore[index, no-any-return]

    # The sampler of 0.19 holds 14 B a logit and twice the hidden state of a sequence; a row a SM stays: 132, or 24.
    old = ("--engine", "vllm==0.19")
    fewer = 1000 * (128_256 * 14 + 2 * 4096 * 2) + (132 - 24) * 128_256 * 4
    forward = 8192 * (4 * 4096 + 3 * 14336) * 2
    sampled = 8192 * 4096 * 2 + 1024 * (128_256 * 14 + 2 * 4096 * 2) + 132 * 128_256 * 4
    assert pool("--max-num-seqs", "24", *old) - pool(*old) == min(fewer, sampled - forward)
    assert pool("--max-num-batched-tokens", "4096") - pool() == forward // 2


def test_requests_of_a_trace(size: Size, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"input_length": 8000, "output_length": 192}\n' * 3)
    (row,) = document(size(*H100, "--context", "8k", "--lengths", str(trace), "--json"))["rows"]
    lengths = row["lengths"]
    assert isinstance(lengths, dict)
    assert lengths["expected_requests"] == lengths["likely_requests"] == lengths["worst_case_requests"] == 51
    assert "Requests that fit at once" in size("--gpu", "h100", "--context", "8k", "--lengths", str(trace)).out


def test_tiers_in_json_and_as_a_table(size: Size) -> None:
    args = ("--gpu", "h100", "--context", "8k", "--dram", "256GiB", "--nvme", "1TB", "--nvme-gbps", "7")
    (row,) = document(size(*args, "--json"))["rows"]
    assert [tier["name"] for tier in row["tiers"]] == ["registers", "l2", "hbm", "dram", "nvme"]  # type: ignore[attr-defined, index]
    assert "Where the cache could live" in size(*args).out
    assert "Where the cache could live" in size("--gpu", "h100", "--context", "8k", "--tiers").out


def test_a_profile_says_what_the_disk_reads_and_a_gpus_what_host_memory_gives(size: Size, tmp_path: Path) -> None:
    args = ("--gpu", "h100", "--context", "8k", "--dram", "256GiB", "--nvme", "1TB", "--profile", str(tmp_path / "p"))

    def reloads(environment: dict[str, object], *more: str) -> dict[object, object]:
        profile = msgspec.structs.replace(PROFILE, environment=environment)
        (tmp_path / "p").write_bytes(encode(profile))
        (row,) = document(size(*args, *more, "--json"))["rows"]
        return {tier["name"]: tier["reload_gbps"] for tier in row["tiers"]}  # type: ignore[attr-defined, index]

    assert reloads({"gpu": None})["nvme"] == 2.5
    assert reloads({"gpu": None})["dram"] != 20.0, "between two places of host memory there is no link"
    assert reloads({"gpu": "a card"})["dram"] == 20.0
    assert reloads({"gpu": "a card"}, "--nvme-gbps", "7")["nvme"] == 7.0
    (tmp_path / "p").write_bytes(encode(msgspec.structs.replace(PROFILE, tiers=PROFILE.tiers[:1])))
    done = size(*args)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "has no disk, only dram: give --nvme-gbps" in done.err


def test_ranking_items_for_a_user(size: Size) -> None:
    args = ("--shared-prefix", "4k", "--context", "4224", "--batch-size", "50")
    assert "shared 1.28 GiB, unshared 25.78 GiB: saved 24.50 GiB (20.1 x)" in size(*args).out
    assert "the prefix once: shared 1.28 GiB" in size(*args, "--explain").out
    (row,) = document(size(*args, "--json"))["rows"]
    assert row["sharing"]["saved_bytes"] == 49 * 4096 * 131_072  # type: ignore[index]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--users", "4"], "--users asks what fits a card: name it with --gpu"),
        (["--gpu", "h100", "--users", "max"], "leave too much open"),
        (["--gpu", "h100", "--users", "x"], "users 'x' is not a whole number or max"),
        (["--gpu", "h100", "--users", "4", "--batch-size", "3"], "--users is the batch size"),
        (["--gpu", "h100", "--users", "4", "--lengths", "4k,8k"], "--lengths asks another question"),
        (["--gpu", "h100", "--users", "4", "--context", "4k,8k"], "--users asks about one context, not '4k,8k'"),
        (["--gpu", "h100", "--users", "4", "--context", "1m"], "context 1048576 is longer than the 131072 tokens"),
        (["--lengths", "4k,8k"], "--lengths is about the memory of a card: name it with --gpu"),
        (["--gpu", "h100", "--lengths", "2k,16k"], "no lognormal has mean 2,048 and p95 16,384"),
        (["--gpu", "h100", "--lengths", "none.jsonl"], "lengths 'none.jsonl': No such file or directory"),
        (["--tiers"], "name it with --gpu, or give --dram or --nvme"),
        (["--dram", "0"], "dram '0' holds nothing"),
        (["--nvme", "1XB"], "nvme '1XB' is not a size"),
        (["--nvme-gbps", "3"], "give its size too"),
        (["--gpu", "h100", "--calibration", "none.json"], "cannot read none.json"),
        (["--gpu", "h100", "--max-num-seqs", "0"], "--max-num-seqs 0 must be from 1"),
        (["--gpu", "h100", "--max-num-batched-tokens", "-1"], "--max-num-batched-tokens -1 must be from 1"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(size: Size, args: list[str], message: str) -> None:
    done = size(*args)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_a_card_of_any_memory(size: Size) -> None:
    (row,) = document(size("--gpu-memory", "48GiB", "--context", "8k", "--json"))["rows"]
    assert row["fit"]["memory_bytes"] == 48 << 30  # type: ignore[index]


def test_what_others_leave_of_it(size: Size) -> None:
    done = size("--gpu", "a10", "--free-memory", "12GiB", "--context", "8k", "--json")
    (row,) = document(done)["rows"]
    assert row["fit"]["usable_bytes"] == 12 << 30  # type: ignore[index]
    said = json.loads(done.out)["assumptions"]
    assert any("vLLM starts with --gpu-memory-utilization 0.54 at most" in line for line in said)
