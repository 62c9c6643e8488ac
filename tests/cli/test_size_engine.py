"""`kvtool size --engine vllm` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.cli.test_size import kvtool, rows

LLAMA_32K = ("llama-3.1-8b", "--engine", "vllm", "--max-model-len", "32k", "--context", "32k")
LINE = "GPU KV cache size: 327,680 tokens, Maximum concurrency for 32,768 tokens per request: 10.00x"


def test_the_log_line_is_printed_on_a_line_of_its_own() -> None:
    done = kvtool("size", *LLAMA_32K, "--kv-cache-memory-bytes", "40GiB")
    assert done.returncode == 0
    assert LINE in done.stdout.splitlines()
    explained = kvtool("size", *LLAMA_32K, "--kv-cache-memory-bytes", "40GiB", "--explain")
    assert "H100-SXM-80GB" in explained.stdout, "the card that the defaults are those of"
    widths = [len(line) for line in done.stdout.splitlines() if line != LINE]
    assert max(widths) <= 80


def test_json_tells_the_whole_plan() -> None:
    (row,) = rows(*LLAMA_32K, "--kv-cache-memory-bytes", "40GiB")
    engine = row["engine"]
    assert row["inputs"]["engine"] == "vllm"
    assert (engine["name"], engine["version"], engine["log_line"]) == ("vllm", "0.33.0", LINE)
    assert (engine["num_blocks"], engine["bytes_per_block"], engine["block_size"]) == (20480, 2 << 20, 16)
    assert (engine["blocks_per_request"], engine["max_concurrency"]) == (2048, 10.0)
    assert (engine["fixed_bytes_per_request"], engine["slope_bytes_per_token"]) == (0, 131072)
    assert engine["exact_given_pool"] is True
    assert engine["groups"] == [
        {
            "kind": "FullAttentionSpec",
            "layer_kinds": ["FullAttentionSpec"],
            "layers": 32,
            "layer_indices": "0-31",
            "block_size": 16,
            "page_size_bytes": 65536,
            "page_size_bytes_total": 2 << 20,
            "blocks_per_request": 2048,
        }
    ]
    assert [term["term"] for term in engine["ledger"]] == ["tokens and states", "null block"]


def test_without_an_engine_nothing_is_said_of_one() -> None:
    (row,) = rows("llama-3.1-8b", "--context", "32k")
    assert set(row["engine"].values()) == {None}
    assert row["inputs"]["engine"] is None


def test_each_cache_dtype_has_its_own_plan() -> None:
    found = rows(*LLAMA_32K, "--kv-cache-memory-bytes", "40GiB", "--kv-cache-dtype", "auto,fp8")
    assert [row["engine"]["max_concurrency"] for row in found] == [10.0, 20.0]


def test_a_request_that_does_not_fit_is_refused_with_what_is_missing() -> None:
    done = kvtool("size", *LLAMA_32K, "--kv-cache-memory-bytes", "1GiB", columns=400)
    assert done.returncode == 1
    assert "the estimated maximum model length is 8176. 3,223,322,624 bytes are missing." in done.stdout


def test_the_longest_that_fits() -> None:
    (row,) = rows("llama-3.1-8b", "--engine", "vllm", "--max-model-len", "-1", "--kv-cache-memory-bytes", "1GiB",
                  "--context", "4k")  # fmt: skip
    assert row["engine"]["max_model_len"] == 8176
    assert row["engine"]["refusal"] is None


def test_with_a_card_the_pool_is_the_estimate_and_said_to_be_one() -> None:
    done = kvtool("size", *LLAMA_32K, "--gpu", "h100", "--json")
    document = json.loads(done.stdout)
    (row,) = document["rows"]
    assert row["engine"]["pool_bytes"] == row["fit"]["kv_pool_bytes"]
    assert any("pool is an estimate that may be off by" in said for said in document["assumptions"])
    assert row["engine"]["exact_given_pool"] is True


def test_a_given_pool_is_what_a_row_must_fit_into() -> None:
    (row,) = rows(*LLAMA_32K, "--kv-cache-memory-bytes", "20GiB", "--gpu", "h100")
    fit = row["fit"]
    assert (fit["kv_pool_bytes"], fit["max_batch_size"], fit["fits"]) == (20 << 30, 5, True)
    assert row["engine"]["max_concurrency"] == 5.0


def test_a_given_pool_beside_too_many_weights_is_planned_and_said_to_be_too_much() -> None:
    done = kvtool("size", "mixtral-8x7b", *LLAMA_32K[1:], "--kv-cache-memory-bytes", "40GiB", "--gpu", "h100", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0
    assert document["rows"][0]["engine"]["refusal"] is None
    assert any("of weights beside it" in said for said in document["assumptions"])


def test_the_ledger_is_explained() -> None:
    done = kvtool("size", "gpt-oss-120b", "--engine", "vllm", "--kv-cache-memory-bytes", "40GiB", "--explain",
                  "--context", "32k", columns=100)  # fmt: skip
    assert "in flight beside windows" in done.stdout
    assert "--no-async-scheduling" in done.stdout


def test_another_version_is_warned_of() -> None:
    args = list(LLAMA_32K)
    args[2] = "vllm==0.34"
    done = kvtool("size", *args, "--kv-cache-memory-bytes", "40GiB", columns=200)
    assert done.returncode == 0
    assert "vLLM 0.34 (extrapolated), bf16 cache: " in done.stdout
    why = kvtool("size", *args, "--kv-cache-memory-bytes", "40GiB", "--explain", columns=200)
    assert "vLLM 0.34: extrapolated: the newest rules known are those of 0.33.0" in why.stdout


@pytest.mark.parametrize("version", ["0.33", "0.33.0"])
def test_the_modelled_version_is_not_warned_of(version: str) -> None:
    done = kvtool("size", "llama-3.1-8b", "--engine", f"vllm=={version}", "--kv-cache-memory-bytes", "40GiB")
    assert "extrapolated" not in done.stdout


def test_flags_reach_the_engine() -> None:
    flags = ("--max-num-batched-tokens", "2048", "--max-num-seqs", "64", "--no-async-scheduling",
             "--num-gpu-blocks-override", "9000", "--no-enable-prefix-caching")  # fmt: skip
    (row,) = rows("gpt-oss-120b", "--engine", "vllm", "--kv-cache-memory-bytes", "40GiB", "--context", "8k", *flags)
    engine = row["engine"]
    assert (engine["max_num_batched_tokens"], engine["max_num_seqs"], engine["num_blocks"]) == (2048, 64, 9000)
    assert engine["groups"][0]["blocks_per_request"] == -(-(127 + 2048) // 16) + 1
    (whole,) = rows("gpt-oss-120b", "--engine", "vllm", "--kv-cache-memory-bytes", "40GiB", "--context", "8k",
                    "--disable-hybrid-kv-cache-manager", "--block-size", "32")  # fmt: skip
    assert [group["block_size"] for group in whole["engine"]["groups"]] == [32]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--engine", "vlm"), "did you mean vllm?"),
        (("--engine", "vllm==new"), "'new' is no version; write vllm==0.33.0"),
        (("--engine", "vllm"), "needs --kv-cache-memory-bytes"),
        (("--engine", "vllm", "--kv-cache-memory-bytes", "much"), "is not a size"),
        (("--engine", "vllm", "--kv-cache-memory-bytes", "0"), "holds nothing"),
        (("--kv-cache-memory-bytes", "40GiB"), "--kv-cache-memory-bytes needs --engine vllm"),
        (("--max-model-len", "-1"), "--max-model-len -1 needs --engine vllm"),
        (("--no-async-scheduling",), "--no-async-scheduling needs --engine vllm"),
        (("--engine", "vllm", "--kv-cache-memory-bytes", "1GiB", "--max-num-seqs", "0"), "--max-num-seqs 0"),
        (("--engine", "vllm", "--kv-cache-memory-bytes", "1GiB", "--kv-cache-dtype", "q8_0"), "vLLM has none such"),
        (("--engine", "vllm", "--kv-cache-memory-bytes", "1GiB", "--mamba-cache-mode", "x"), "--mamba-cache-mode"),
        (("--engine", "vllm", "--kv-cache-memory-bytes", "1GiB", "--block-size", "0"), "block size 0"),
    ],
)
def test_mistakes_are_one_line(args: tuple[str, ...], message: str) -> None:
    done = kvtool("size", "llama-3.1-8b", *args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr


def test_a_plan_needs_no_torch() -> None:
    code = (
        "import sys; sys.argv[1:] = "
        "['size', 'llama-3.1-8b', '--engine', 'vllm', '--kv-cache-memory-bytes', '40GiB', '--json']\n"
        "from kvtool.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'triton', 'pandas', 'matplotlib') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
