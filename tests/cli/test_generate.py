"""`kvtool generate` as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.in_process import Done, run

Kvtool = Callable[..., Done]
ONE_LAYER = ("generate", "smollm2-135m", "--num-layers", "1", "--output-len", "4")


@pytest.fixture
def kvtool(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Kvtool:
    return lambda *args: run(capsys, monkeypatch, *args)


def test_json_has_the_token_ids_and_what_they_took(kvtool: Kvtool) -> None:
    done = kvtool(*ONE_LAYER, "--prompt-ids", "1,2,3", "--prompt-ids", "7", "--json")
    assert done.code == 0
    document = json.loads(done.out)
    assert document["schema"] == "kvtool.generate/1"
    assert [sequence["prompt_tokens"] for sequence in document["sequences"]] == [3, 1]
    for sequence in document["sequences"]:
        assert len(sequence["output_ids"]) == 4
        assert sequence["pages"] == 1
        assert sequence["ttft_ms"] > 0
        assert sequence["tpot_ms"] > 0
    again = json.loads(kvtool(*ONE_LAYER, "--prompt-ids", "1,2,3", "--json").out)
    assert again["sequences"][0]["output_ids"] == document["sequences"][0]["output_ids"]


def test_ids_are_streamed_and_what_was_assumed_goes_to_stderr(kvtool: Kvtool) -> None:
    done = kvtool(*ONE_LAYER, "--prompt-ids", "1,2,3")
    ids, summary = done.out.splitlines()
    assert len(ids.split()) == 4
    assert summary.startswith("[3 prompt + 4 output tokens, TTFT ")
    assert "weights are random" in done.err


def test_the_next_run_finds_its_prefix_on_the_disk(kvtool: Kvtool, tmp_path: Path) -> None:
    prompt = ",".join(map(str, range(40)))
    tiers = ("--prompt-ids", prompt, "--tiers", f"disk={tmp_path}:64MiB", "--json")
    first, second = (json.loads(kvtool(*ONE_LAYER, *tiers).out) for _ in range(2))
    assert [document["tiers"][0]["hit_tokens"] for document in (first, second)] == [0, 32]
    assert second["tiers"][0]["bytes_out"] == 2 * 16 * 3 * 2 * 64 * 2  # pages, tokens, heads, K and V, columns of bf16
    assert second["inputs"]["tiers"] == "disk=64 MiB"
    assert first["sequences"][0]["output_ids"] == second["sequences"][0]["output_ids"]


def test_one_output_token_has_no_tpot(kvtool: Kvtool) -> None:
    done = kvtool("generate", "smollm2-135m", "--num-layers", "1", "--output-len", "1", "--prompt-ids", "1", "--json")
    assert json.loads(done.out)["sequences"][0]["tpot_ms"] is None


def test_a_drawn_text_is_the_seed_s(kvtool: Kvtool) -> None:
    def ids(seed: str) -> list[int]:
        done = kvtool(*ONE_LAYER, "--prompt-ids", "1,2", "--temperature", "5", "--seed", seed, "--json")
        return json.loads(done.out)["sequences"][0]["output_ids"]  # type: ignore[no-any-return]

    assert ids("3") == ids("3") != ids("4")


def test_the_cache_is_drawn_with_what_prompts_share(kvtool: Kvtool) -> None:
    """Pages of 2: the first prompt leaves [1 2][3 4][.. ..], of which the second finds one and the third none."""
    args = (*ONE_LAYER, "--block-size", "2", "--show-cache")
    prompts = ("--prompt-ids", "1,2,3,4", "--prompt-ids", "1,2,9", "--prompt-ids", "8,8,8")
    lines = kvtool(*args, *prompts).out.splitlines()[-5:]
    assert lines == [
        "8 cached pages of 2 tokens, 1 shared; prompt tokens found: 0 + 2 + 0",
        "├─ page 0, tokens 0-1: prompts 1, 2",
        "│  ├─ pages 1-2, tokens 2-5: prompt 1",
        "│  └─ pages 3-4, tokens 2-5: prompt 2",
        "└─ pages 5-7, tokens 0-5: prompt 3",
    ]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("generate", "smollm2-135m"), "--prompt TEXT or --prompt-ids"),
        (("generate", "smollm2-135m", "--prompt", "a", "--prompt-ids", "1"), "one of the two"),
        (("generate", "smollm2-135m", "--prompt", "hello"), "no tokenizer.json"),
        (("generate", "smollm2-135m", "--prompt-ids", "1,x"), "'1,x'"),
        (("generate", "smollm2-135m", "--num-layers", "1", "--prompt-ids", "49152"), "outside the vocabulary"),
        (("generate", "smollm2-135m", "--num-layers", "1", "--prompt-ids=-1"), "outside the vocabulary"),
        (("generate", "smollm2-135m", "--prompt-ids", "1", "--output-len", "0"), "output length 0"),
        (("generate", "smollm2-135m", "--prompt-ids", "1", "--top-p", "0"), "top-p 0"),
        (("generate", "smollm2-135m", "--prompt-ids", "1", "--temperature", "-1"), "temperature -1"),
        (("generate", "--prompt-ids", "1"), "name a MODEL"),
        (("generate", "jamba-v0.1", "--prompt-ids", "1"), "does not run"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_exit_code_2(kvtool: Kvtool, args: tuple[str, ...], message: str) -> None:
    done = kvtool(*args)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_a_shape_nobody_knows_runs_as_another_and_says_so(kvtool: Kvtool, tmp_path: Path) -> None:
    odd = tmp_path / "odd.json"
    shape = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    odd.write_text(json.dumps({"model_type": "oddball", "vocab_size": 256, **shape}))
    args = ("--prompt-ids", "1,2", "--output-len", "2")
    done = kvtool("generate", str(odd), "--as", "llama", *args)
    assert (done.code, "assumed: odd is read as llama, because --as says so" in done.err) == (0, True)
    assert "--as llama is how to read MODEL's config" in kvtool("kernels", "--as", "llama").err
