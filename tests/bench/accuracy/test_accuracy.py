"""The accuracy part on a tiny model: its figures, its bytes, and what it says of too little text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kvtool.bench.accuracy.methods import Method, method, reference_method
from kvtool.bench.accuracy.pays import Line, answer, pays
from kvtool.bench.accuracy.pays import line as fitted
from kvtool.bench.accuracy.text import Text, read_text
from kvtool.bench.accuracy.tokens import LOSES, Mean, is_settled, mean_of, moved, verdict
from kvtool.bench.cases.accuracy import AccuracyPart, Comparison
from kvtool.bench.cases.base import Setup
from kvtool.machine.pace import Budget
from kvtool.results import AccuracyCase
from kvtool.results.warnings import budget_notes
from kvtool.sizing.formats import parse_cache_format
from kvtool.sizing.layers import layer_specs
from kvtool.system.errors import KvtoolError
from tests.bench.tiny_model import TINY, loaded

FORMATS = (
    "bf16",
    "int8_per_token_head",
    "fp8",
    "fp8+calibrated",
    "int8",
    "int4",
    "int4+hadamard",
    "bf16/int4",
    "kivi_int2",
    "bf16+streaming:64",
    "bf16+quest:64",
)
CONTEXTS = (40, 200)


class Letters:
    """One token a character."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % 512 for letter in text]

    def decode(self, token_ids: list[int]) -> str:
        return "".join(map(chr, token_ids))


@pytest.fixture(scope="module")
def cases() -> dict[str, AccuracyCase]:
    """Two windows of random tokens through every format."""
    token_ids = torch.randint(512, (640,), generator=torch.Generator().manual_seed(3)).tolist()
    setup: Any = Setup(loaded=loaded(), windows=None, num_iters=2, num_iters_warmup=0)  # type: ignore[arg-type]
    part = AccuracyPart(kv_cache_dtypes=FORMATS, input_lens=(256,), output_len=4, skip_layers=(0,), contexts=CONTEXTS)
    found = Comparison(setup, part, Text(token_ids, "0" * 64), 256).measure().cases
    return {case.name.removeprefix("accuracy/"): case for case in found if isinstance(case, AccuracyCase)}


def test_every_format_has_a_case_and_one_with_layers_left_whole(cases: dict[str, AccuracyCase]) -> None:
    names = [name for each in FORMATS for name in (each, f"{each}/layers 0 whole")]
    assert list(cases) == [name for name in names if name != "bf16+streaming:64/layers 0 whole"]
    assert cases["int4+hadamard/layers 0 whole"].accuracy.method == "hadamard, layers 0 whole"
    hadamard = cases["int4+hadamard"].accuracy
    assert (hadamard.kv_cache_dtype, hadamard.method, hadamard.reference) == ("int4", "hadamard", "fp32")
    assert cases["int4"].accuracy.method is None
    assert cases["int4"].inputs["kv_cache_dtype"] == "int4"
    assert hadamard.tokens == 2 * 255


@pytest.mark.parametrize("name", FORMATS)
def test_predicted_bytes_are_those_that_the_tensors_hold(cases: dict[str, AccuracyCase], name: str) -> None:
    for case in filter(None, (cases[name], cases.get(f"{name}/layers 0 whole"))):
        assert case.memory.kv_predicted_bytes == case.memory.kv_allocated_bytes > 0


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_timed_holds_the_bytes_that_are_sized(cases: dict[str, AccuracyCase], name: str) -> None:
    """Predicted by the specs alone, held by the tensors; StreamingLLM keeps 4 pages of 64 tokens and one turned."""
    speed = cases[name].accuracy.speed
    assert speed is not None
    specs = layer_specs(TINY, parse_cache_format(name).paged(16))
    kivi = name.startswith("kivi")  # without pages
    sized = [
        sum(spec.stored_bytes(context) if kivi else spec.allocated_bytes(context, 16) for spec in specs)
        for context in CONTEXTS
    ]
    assert speed.held_bytes == sized
    assert [len(turns) for turns in (*speed.itl_ms, *speed.reference_itl_ms)] == [4, 4, 4, 4]
    assert speed.contexts == list(CONTEXTS)
    if name == "bf16+streaming:64":
        assert speed.held_bytes == [3 * 16 * 2 * 2 * 64, 5 * 16 * 2 * 2 * 64]


def test_a_slow_machine_reads_less_of_the_text_with_every_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock on which a token that a format sees takes 10 ms."""
    now, names = [0.0], ("int8_per_token_head", "int4")
    token_ids = torch.randint(512, (1280,), generator=torch.Generator().manual_seed(3)).tolist()

    def comparison(total_s: float) -> Comparison:
        budget = Budget(total_s, trims=True, clock=lambda: now[0])
        setup: Any = Setup(loaded=loaded(), windows=None, num_iters=2, num_iters_warmup=0, budget=budget)  # type: ignore[arg-type]
        part = AccuracyPart(kv_cache_dtypes=names, input_lens=(256,), output_len=4)
        return Comparison(setup, part, Text(token_ids, "0" * 64), 256)

    plain = Method.logits

    def slow(own: Method, token_ids: Sequence[int], *more: Any, **named: Any) -> torch.Tensor:
        now[0] += 0.01 * len(token_ids)
        return plain(own, token_ids, *more, **named)

    monkeypatch.setattr(Method, "logits", slow)
    for total_s, trimmed in (
        (25.6, ["256 of 1,024 tokens of text read"]),
        (
            6.44,
            [
                "layers compared on 48 of 256 tokens",
                "greedy text of 1 of 4 prompts",
                "windows of 82 tokens in place of 256",
                "82 of 1,024 tokens of text read",
            ],
        ),
    ):
        now[0] = 0.0
        cases = comparison(total_s).measure().cases
        assert now[0] <= total_s
        assert [case.accuracy.trimmed for case in cases if isinstance(case, AccuracyCase)] == [trimmed, trimmed]
        assert budget_notes(cases) == [
            f"accuracy, within the time budget: {'; '.join(trimmed)} (--num-iters N reads N windows)"
        ]


def test_a_line_says_from_where_a_format_pays() -> None:
    """vLLM's fit of Llama-3.1-8B on an H100: fp8 pays from 7.0k tokens (slopes 4.37e-5 and 2.37e-5 ms a token,
    intercepts 6.44 and 6.58 ms)."""

    def line(intercept: float, slope: float) -> Line:
        near = (0.999, 1.0, 1.001, 1.0)
        return Line([intercept * x for x in near], [slope * x for x in near])

    bf16 = line(6.44, 4.37e-5)
    assert pays(line(6.58, 2.37e-5), bf16, 131072) == (7000, "pays from 7k tokens")
    assert pays(line(6.58, 2.37e-5), bf16, 4096)[1] == "would pay from 7k tokens, beyond the 4k of the model"
    assert pays(line(6.40, 2.37e-5), bf16, 131072) == (0, "pays at any context")
    never = "never pays here: {0}to read a token takes {1} times as long"
    assert pays(line(6.40, 8.74e-5), bf16, 131072) == (None, never.format("", "2.00 (2.00 to 2.00)"))
    assert pays(line(9.0, 4.37e-5), bf16, 131072)[1] == never.format("a step takes longer, and ", "1.00 (1.00 to 1.00)")
    noisy = Line([6.44] * 4, [3e-5, 6e-5, 4e-5, 5e-5])
    assert (
        pays(noisy, bf16, 131072)[1] == "nothing can be said: to read a token takes 1.03 (0.35 to 1.70) times as long"
    )
    exact = fitted([100, 200, 400], [[1.1, 2.1], [1.2, 2.2], [1.4, 2.4]])
    assert exact.intercepts == pytest.approx([1.0, 2.0])
    assert exact.slopes == pytest.approx([1e-3, 1e-3])


def test_where_lines_say_nothing_whole_steps_may() -> None:
    """Steps at short contexts differ by a tenth from turn to turn, and at the longest by a hundredth."""
    pattern, itl_ms = (-1, 0.8, -0.4, 1, 0, -0.6, 0.3, -0.2), (30.0, 35.0, 50.0)

    def said(times: tuple[float, ...], noise: tuple[float, ...] = (0.1, 0.1, 0.01)) -> str:
        other = [[ms * (1 + n * x) for x in pattern] for ms, n in zip(itl_ms, noise, strict=True)]
        own = [[ms * t * (1 - n * x) for x in pattern] for ms, n, t in zip(itl_ms, noise, times, strict=True)]
        return answer(own, other, [256, 2048, 8192], 8192)[1]

    there = "a step there takes {0} times as long"
    assert said((1.06, 1.06, 1.06)) == "does not pay up to 8k tokens: " + there.format("1.06 (1.05 to 1.08)")
    assert said((1.0, 1.0, 0.94)).startswith("pays at 8k tokens, and from where cannot be said: ")
    assert said((1.0, 1.0, 1.0)) == "nothing can be said: to read a token takes 0.97 (0.77 to 1.17) times as long"
    same = said((1.0, 1.0, 1.0), noise=(0.01, 0.01, 0.01))
    assert same == "makes no difference up to 8k tokens: " + there.format("1.00 (0.99 to 1.02)")
    assert said((1.0, 1.0, 0.5)) == "pays from 1.2k tokens"


def test_a_format_that_loses_is_read_again_with_its_worst_layers_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both layers of a model of two are left whole, so that nothing is lost any more."""
    monkeypatch.setattr("kvtool.bench.cases.accuracy.words_of", lambda found, reference: LOSES)
    token_ids = torch.randint(512, (192,), generator=torch.Generator().manual_seed(3)).tolist()
    setup: Any = Setup(loaded=loaded(), windows=None, num_iters=2, num_iters_warmup=0)  # type: ignore[arg-type]
    part = AccuracyPart(kv_cache_dtypes=("int4", "bf16+streaming:32"), input_lens=(64,), output_len=4)
    found = Comparison(setup, part, Text(token_ids, "0" * 64), 64).measure().cases
    own, streaming, spared = (case for case in found if isinstance(case, AccuracyCase))
    assert (streaming.name, spared.name) == ("accuracy/bf16+streaming:32", "accuracy/int4/worst layers whole")
    assert spared.inputs["skip_layers"] == "0,1"
    assert spared.accuracy.kl_mean == pytest.approx(0.0, abs=1e-9)
    assert spared.accuracy.kl_saved == pytest.approx(own.accuracy.kl_mean)
    assert spared.accuracy.attention_error == [0.0, 0.0]
    assert spared.accuracy.tokens == own.accuracy.tokens
    assert spared.memory.kv_predicted_bytes == spared.memory.kv_allocated_bytes > own.memory.kv_allocated_bytes


def test_errors_by_layer_follow_the_bits(cases: dict[str, AccuracyCase]) -> None:
    def error(name: str) -> float:
        return max(cases[name].accuracy.key_error)

    assert error("bf16") < error("int8_per_token_head") < error("int8") < error("fp8") < error("int4")
    assert cases["bf16/int4"].accuracy.key_error == cases["bf16"].accuracy.key_error
    assert cases["bf16/int4"].accuracy.value_error == cases["int4"].accuracy.value_error
    assert len(cases["int4"].accuracy.attention_error) == TINY.num_layers
    assert cases["int4/layers 0 whole"].accuracy.attention_error[0] == 0.0
    assert cases["int4/layers 0 whole"].accuracy.attention_error[1] == cases["int4"].accuracy.attention_error[1]


def test_figures_of_the_next_token_follow_the_bits(cases: dict[str, AccuracyCase]) -> None:
    kl = {name: case.accuracy.kl_mean for name, case in cases.items()}
    assert 0 <= kl["bf16"] < kl["int8_per_token_head"] < kl["int4"] < kl["kivi_int2"] * 10
    for case in cases.values():
        found = case.accuracy
        assert found.kl_mean <= found.kl_p99 <= found.kl_max
        assert 0 <= found.top1_agreement <= 1
        assert 0 <= found.greedy_agreement_tokens <= 4
        assert found.reference_perplexity == pytest.approx(found.perplexity - found.perplexity_change)
        assert found.verdict == "nothing can be said: 510 tokens are too few"


def test_kl_and_surprise_are_those_of_their_definitions() -> None:
    generator = torch.Generator().manual_seed(0)
    reference, logits = (torch.randn(5, 7, generator=generator) for _ in range(2))
    found = moved(reference, logits, [0, 3, 1, 6, 2])
    p, q = (x.double().softmax(-1).numpy() for x in (reference, logits))
    np.testing.assert_allclose(found.kl, (p * np.log(p / q)).sum(-1)[:4], atol=1e-6)
    np.testing.assert_allclose(found.nll, -np.log(q[range(4), [3, 1, 6, 2]]), atol=1e-6)
    assert found.agrees.tolist() == (p.argmax(-1) == q.argmax(-1))[:4].astype(float).tolist()


def test_a_standard_error_is_of_blocks_not_of_tokens() -> None:
    """Sixty-four equal values are one: two such blocks of 0 and 1 have the error of two values."""
    blocks = np.repeat([0.0, 1.0], 64)
    assert mean_of([blocks]) == Mean(0.5, 0.5)
    assert mean_of([blocks[:64]]) == Mean(0.0, None)


@pytest.mark.parametrize(
    ("change", "se", "blocks", "words"),
    [
        (0.0001, 0.001, 64, "not distinguishable from bf16 at this sample"),
        (0.02, 0.001, 64, "loses"),
        (3.0, 0.1, 64, "collapses"),
        (0.001, 0.02, 64, "nothing can be said yet: the interval of 4,096 tokens is too wide"),
        (3.0, 0.001, 5, "nothing can be said: 4,096 tokens are too few"),
    ],
)
def test_verdicts(change: float, se: float, blocks: int, words: str) -> None:
    said = verdict(Mean(change, se), blocks, 4096, "bf16")
    assert said == words
    assert is_settled(said) == (not words.startswith("nothing"))


@pytest.mark.parametrize(
    ("name", "layers", "message"),
    [
        ("nvfp4", (), "nvfp4 cache can be sized, but not run"),
        ("int4", (2,), "layer 2 is not one of the 2"),
        ("bf16+streaming:64", (0,), "lets go of a page in all layers at once"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(name: str, layers: tuple[int, ...], message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        method(loaded(), name, layers)


def test_a_quantised_cache_is_nothing_to_compare_with() -> None:
    with pytest.raises(KvtoolError, match="not with fp8"):
        reference_method(loaded(kv_cache_dtype="fp8"))


def test_random_weights_are_refused() -> None:
    setup: Any = Setup(loaded=loaded(), windows=None, num_iters=2, num_iters_warmup=0)  # type: ignore[arg-type]
    with pytest.raises(KvtoolError, match="random weights predict nothing"):
        list(AccuracyPart.default(gpu=False).steps(setup))


def test_texts(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("ab")
    with pytest.raises(KvtoolError, match="has 2 tokens: at least 3"):
        read_text(own, Letters(), 512)
    own.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(KvtoolError, match="not text in UTF-8"):
        read_text(own, Letters(), 512)
    own.write_text("abcd")
    with pytest.raises(KvtoolError, match="outside the vocabulary of 50"):
        read_text(own, Letters(), 50)
    shipped = read_text(None, Letters(), 512)
    assert len(shipped.token_ids) == 57004
    assert [len(window) for window in Text(list(range(1100)), "").windows(512)] == [512, 512]
    assert [len(window) for window in Text(list(range(900)), "").windows(512)] == [512, 388]
    assert [len(window) for window in Text(list(range(100)), "").windows(512)] == [100]
