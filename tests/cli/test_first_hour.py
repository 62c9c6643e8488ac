"""Mistakes of a first hour: each is one line that names the value and what is right, before anything is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from gguf.constants import MODEL_ARCH
from transformers import LlamaConfig, LlamaForCausalLM

from kvtool.engine.weights.source import finite
from kvtool.machine.threads import usable_cpus
from kvtool.system.errors import KvtoolError
from tests.cli.in_process import run
from tests.engine.gguf_file import write_gguf

TINY = ("smollm2-135m", "--device", "cpu", "--num-layers", "1")
SHORT = ("--prompt-ids", "1,2", "--output-len", "2")


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: str, code: int = 2) -> str:
    done = run(capsys, monkeypatch, *args)
    assert (done.code, done.out) == (code, ""), done.err
    assert done.err.count("\n") == 1
    return done.err


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def loads(*args: object, **given: object) -> None:
        pytest.fail("weights are made or read")

    monkeypatch.setattr("kvtool.engine.loaded.weight_source", loads)


@pytest.mark.usefixtures("nothing_loads")
def test_more_threads_than_cpus(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told = refused(capsys, monkeypatch, "generate", *TINY, *SHORT, "--threads", "10000")
    assert f"--threads 10000: this process may use {len(usable_cpus())} CPUs" in told


@pytest.mark.usefixtures("nothing_loads")
def test_weights_and_pool_must_have_room_together(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One layer in fp32 takes 49152 x 576 x 4 bytes of embedding and 14 MB; 8,000 tokens 192 x 2 x 4 bytes each.
    monkeypatch.setattr("kvtool.engine.loaded.available_bytes", lambda device: 135_000_000)
    ids = ",".join(["5"] * 8_000)
    told = refused(capsys, monkeypatch, "generate", *TINY, "--dtype", "fp32", "--prompt-ids", ids, code=3)
    assert "beside the weights: ask for fewer or shorter requests" in told
    bench = ("bench", *TINY, "--dtype", "fp32", "--parts", "latency", "--input-len", "1k", "--batch-size", "8")
    assert "beside the weights" in refused(capsys, monkeypatch, *bench, code=3)
    monkeypatch.setattr("kvtool.engine.loaded.available_bytes", lambda device: 1_000_000)
    assert "even one layer has no room" in refused(capsys, monkeypatch, "generate", *TINY, *SHORT, code=3)


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_weights_with_nan(bad: str) -> None:
    weights = torch.zeros(4, 4)
    assert finite("a", weights) is weights
    weights[1, 2] = float(bad)
    with pytest.raises(KvtoolError, match="tensor 'a' has NaN or infinite elements in float32"):
        finite("a", weights)
    with pytest.raises(KvtoolError, match="in float16"):
        finite("a", torch.full((2,), 1e9).to(torch.float16))


def test_an_option_given_twice(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told = refused(capsys, monkeypatch, "size", "llama-3.1-8b", "--context", "4k", "--context", "8k")
    assert "--context is given 2 times: give it once (a list takes commas)" in told
    assert run(capsys, monkeypatch, "size", "llama-3.1-8b", "--json", "--json").code == 0


def test_a_missing_head_dim_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told = refused(capsys, monkeypatch, "size", "--layers", "2", "--heads", "4")
    assert "--head-dim must stand beside --layers, --heads" in told


def test_a_folder_with_one_gguf_is_that_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1}
    config = LlamaConfig(**shape, intermediate_size=32, vocab_size=16)
    file = tmp_path / "a.gguf"
    write_gguf(LlamaForCausalLM(config).eval(), file, MODEL_ARCH.LLAMA)
    for args in (("size",), ("generate", *SHORT, "--device", "cpu")):
        whole, folder = (run(capsys, monkeypatch, args[0], str(name), *args[1:]) for name in (file, tmp_path))
        assert whole.code == folder.code == 0, folder.err
    shutil.copy(file, tmp_path / "b.gguf")
    assert "has 2 .gguf files" in refused(capsys, monkeypatch, "size", str(tmp_path))
