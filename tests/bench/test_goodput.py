"""Which requests keep what was promised."""

from __future__ import annotations

import pytest

from kvtool.bench.cases.goodput import goodput_ratio, parse_goodput
from kvtool.results import Sample
from kvtool.system.errors import KvtoolError


def sample(ttft_ms: float, tpot_ms: float, output_tokens: int = 3) -> Sample:
    ttft_s = ttft_ms / 1e3
    return Sample(
        arm="cached", iteration=0, ttft_s=ttft_s, e2e_s=ttft_s + tpot_ms / 1e3 * (output_tokens - 1), itl_s=[],
        output_tokens=output_tokens, prompt_tokens=9, cached_tokens=0,
    )  # fmt: skip


def test_a_request_keeps_every_limit_or_none_counts() -> None:
    requests = [sample(100, 40), sample(199, 60), sample(210, 40), sample(150, 900, output_tokens=1)]
    assert goodput_ratio(requests, parse_goodput("ttft:200,tpot:50")) == 2 / 4
    assert goodput_ratio(requests, parse_goodput("ttft:200")) == 3 / 4
    assert goodput_ratio(requests, parse_goodput("e2e:180.5")) == 2 / 4
    assert goodput_ratio(requests, {}) is None


@pytest.mark.parametrize(
    "text", ["ttft", "ttft:", "ttft:x", "ttft:0", "ttft:-5", "ttft:nan", "itl:5", "ttft:5,,tpot:1"]
)
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(KvtoolError, match=r"ttft:200,tpot:50|empty item"):
        parse_goodput(text)
