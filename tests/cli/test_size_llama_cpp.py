"""`kvtool size --engine llama.cpp|ollama` from the command line, with the flags that people have."""

from __future__ import annotations

import json

import pytest

from kvtool.units import MIB
from tests.cli.in_process import run


def sized(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: str) -> dict[str, object]:
    done = run(capsys, monkeypatch, "size", *args, "--json")
    assert done.code == 0, done.err
    engine: dict[str, object] = json.loads(done.out)["rows"][0]["engine"]
    return engine


@pytest.mark.parametrize(
    ("args", "mib"),
    [
        (("gemma-2-2b", "--engine", "llama.cpp", "--max-model-len", "8k"), 832),
        (("gemma-3-12b-it", "--engine", "ollama", "--max-model-len", "2k"), 608),
        (("gemma-3-27b-it", "--engine", "ollama==0.6.0", "--max-model-len", "2k"), 992),
    ],
)
def test_public_figures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], mib: int
) -> None:
    """Lines of public logs: gemma-2-2b with 4 slots at 8k, gemma3:12b and an older gemma3:27b in Ollama at 2,048."""
    engine = sized(capsys, monkeypatch, *args, "--context", "2k")
    assert engine["bytes_needed"] == mib * MIB


def test_types_slots_and_gpus(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("llama-3.1-8b", "--engine", "llama.cpp", "--max-model-len", "8k", "--context", "4k", "--parallel", "2")
    types = ("--cache-type-k", "q8_0", "--cache-type-v", "q4_0", "--tensor-split", "3,1", "--n-gpu-layers", "25")
    engine = sized(capsys, monkeypatch, *args, *types)
    row = 8 * 128 // 32 * (34 + 18)  # bytes of a layer's cell: blocks of 32 in q8_0 and q4_0
    assert engine["bytes_needed"] == [8192 * 19 * row, 8192 * 5 * row]
    assert (engine["max_num_seqs"], engine["max_model_len"]) == (2, 4096)
    whole = sized(capsys, monkeypatch, *args, "--kv-cache-dtype", "q8_0")
    assert whole["bytes_needed"] == 8192 * 32 * 8 * 128 // 32 * (34 + 34)


def test_the_context_is_c_as_of_llama_server(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama-server -c 8192 with Llama 3.1 8B: 8,192 cells of 32 layers, 1 GiB, whatever the model was made for."""
    given = sized(capsys, monkeypatch, "llama-3.1-8b", "--engine", "llama.cpp", "--context", "8k")
    assert (given["num_blocks"], given["bytes_needed"]) == (8192, 1024 * MIB)
    told = sized(
        capsys, monkeypatch, "llama-3.1-8b", "--engine", "llama.cpp", "--context", "8k", "--max-model-len", "16k"
    )
    assert told["num_blocks"] == 16384


def test_every_row_is_a_start_of_its_own(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """gemma-2-2b with four slots: 8,192 cells for 8k, 131,072 for 128k, and the sentence is about the one it names."""
    args = ("size", "gemma-2-2b", "--engine", "llama.cpp", "--context", "8k,128k")
    rows = json.loads(run(capsys, monkeypatch, *args, "--json").out)["rows"]
    assert [row["engine"]["num_blocks"] for row in rows] == [8192, 131_072]
    assert [row["engine"]["blocks_per_request"] for row in rows] == [8192, 131_072]
    out = " ".join(run(capsys, monkeypatch, *args).out.split())
    assert "started for 128k x 1: 131,072 cells" in out
    assert "A request of 128k tokens takes 131,072 cells." in out
    told = " ".join(run(capsys, monkeypatch, *args[:-1], "4k,8k", "--max-model-len", "32k").out.split())
    assert "bf16 cache: 32,768 cells" in told
    assert "A request of 4k tokens takes 4,096 cells." in told


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--parallel", "2"), "--parallel needs --engine llama.cpp or ollama"),
        (("--engine", "llama.cpp", "--kv-cache-dtype", "fp8"), "--cache-type-k 'fp8' is not one of llama.cpp's"),
        (("--engine", "llama.cpp", "--tensor-split", "a,b"), "--tensor-split 'a,b' is not a list of shares"),
        (("--engine", "llama.cpp", "--flash-attn", "maybe"), "--flash-attn 'maybe' is not one of auto, on, off"),
        (("--engine", "llama.cpp==8000"), "llama.cpp is planned by one set of rules"),
        (("--engine", "llama.cpp", "--users", "4", "--gpu", "h100"), "--users plans vllm and sglang"),
    ],
)
def test_wrong_use_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], message: str
) -> None:
    done = run(capsys, monkeypatch, "size", "llama-3.1-8b", *args)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1
