from __future__ import annotations

import math
from pathlib import Path

import pytest

from kvtool.system.errors import KvtoolError
from kvtool.workloads.lengths import lognormal, parse_lengths, read_lengths

TRACE = Path(__file__).parents[3] / "shared" / "traces" / "mooncake_conversation.jsonl"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "lengths.jsonl"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        '{"input_length": 6, "output_length": 1, "hash_ids": [0]}\n{"input_length": 2, "output_length": 3}\n',
        "7\n\n5\n",
        "[5, 7]",
        '[{"input_length": 7}, 5]',
    ],
)
def test_traces_and_lists(tmp_path: Path, text: str) -> None:
    lengths = parse_lengths(str(written(tmp_path, text)))
    assert (lengths.tokens, lengths.requests) == ((5, 7), 2)
    assert lengths.source == "2 requests of lengths.jsonl"


def test_a_lognormal_has_the_mean_and_the_p95_asked_for() -> None:
    for lengths in (parse_lengths("4k,12k"), parse_lengths("mean=4k, p95=12k")):
        assert sum(lengths.tokens) / len(lengths.tokens) == pytest.approx(4096, rel=0.005)
        assert lengths.at(0.95) == pytest.approx(12_288, rel=0.005)
        assert lengths.requests is None
    sigma = 1.644854 - math.sqrt(1.644854**2 - 2 * math.log(3))
    assert lengths.at(0.5) == pytest.approx(4096 * math.exp(-(sigma**2) / 2), rel=0.005)


def test_a_lognormal_by_its_median() -> None:
    lengths = parse_lengths("p50=2k,p95=16k")
    assert (lengths.at(0.5), lengths.at(0.95)) == (pytest.approx(2048, rel=0.005), pytest.approx(16_384, rel=0.01))


def test_equal_figures_are_one_length() -> None:
    assert set(lognormal(mean=500, p95=500).tokens) == {500}


def test_the_mooncake_trace() -> None:
    """12,031 requests of 144,793,823 prompt tokens: the trace as released with FAST '25, counted by several tools."""
    if not TRACE.is_file():
        pytest.skip(f"{TRACE} is not here")
    lengths = read_lengths(TRACE)
    assert lengths.requests == 12_031
    assert sum(lengths.tokens) - 144_793_823 == sum(_outputs(TRACE))


def _outputs(path: Path) -> list[int]:
    import json

    return [json.loads(line)["output_length"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2k,16k", "no lognormal has mean 2,048 and p95 16,384: p95 / mean is 8.00 and must be from 1 to 3.87"),
        ("8k,4k", "must be from 1 to 3.87"),
        ("p50=8k,p95=4k", "p95 4096 is below the median 8192"),
        ("p95=8k,p50=4k", "name other figures"),
        ("1k,2k,3k", "are not two figures"),
        ("1k,", "is not a number of tokens"),
        ("4k", "No such file or directory; write a file"),
        ("no\0file", "no file has such a name"),
    ],
)
def test_what_says_no_lengths_is_refused(text: str, message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        parse_lengths(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no requests"),
        ("5\nsix\n", "request 2: JSON is malformed"),
        ("5\n0\n", "request 2: 0 tokens must be from 1"),
        ('{"input_length": 5, "output_length": -1}', "request 1: a length of -1 tokens is negative"),
        ('{"input_length": -1, "output_length": 5}', "request 1: a length of -1 tokens is negative"),
        ('{"output_length": 5}', "missing required field `input_length`"),
        ("1.5", "request 1: Expected `int | object`, got `float`"),
        ("[5, 6", "is not a JSON list of lengths"),
    ],
)
def test_what_is_no_trace_is_refused_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(KvtoolError) as raised:
        read_lengths(written(tmp_path, text))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
