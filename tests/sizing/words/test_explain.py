from __future__ import annotations

import math
import re

import pytest

from kvtool.catalog.model import Model
from kvtool.results import Calibration
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.words.explain import explain
from tests.sizing.example import ALL_KINDS, CARD, CROSS, DEEPSEEK_V3, DEEPSEEK_V32, LLAMA_8B, QWEN3_NEXT, SLIDING


@pytest.mark.parametrize(
    ("model", "dtype", "line"),
    [
        (LLAMA_8B, "bf16", "full: 2 x 32 layers x 8 KV heads x 128 x 2 B = 131,072 B/token"),
        (LLAMA_8B, "int8_per_token_head",
         "full: 32 layers x 8 KV heads x ((128 + 128) x 1 B + 8 B of scales) = 67,584 B/token"),
        (SLIDING, "bf16",
         "sliding: 2 x 4 layers x 8 KV heads x 128 x 2 B = 16,384 B/token, "
         "for at most 1,024 tokens = 16,777,216 B/sequence"),
        (DEEPSEEK_V3, "bf16", "mla: 61 layers x (512 latent + 64 rotary) x 2 B = 70,272 B/token"),
        (DEEPSEEK_V32, "fp8", "mla: 61 layers x (512 x 1 B + 4 scales x 4 B + 64 x 2 B) = 40,016 B/token"),
        (DEEPSEEK_V32, "fp8", "indexer: 61 layers x (128 x 1 B + 1 scale x 4 B) = 8,052 B/token"),
        (QWEN3_NEXT, "bf16",
         "state: 36 layers x (24,576 convolution elements x 2 B + 524,288 recurrent x 2 B) = 39,518,208 B/sequence"),
        (CROSS, "bf16",
         "cross: 2 x 1 layer x 8 KV heads x 128 x 2 B = 4,096 B/token x 1,601 encoder tokens = 6,557,696 B/sequence"),
    ],
)  # fmt: skip
def test_formulas_with_the_numbers_put_in(model: Model, dtype: str, line: str) -> None:
    lines = explain(model, options=SizeOptions(contexts=(8192,), kv_cache_dtypes=(dtype,)))
    assert f"  {line}" in lines


def test_the_products_are_right() -> None:
    """Multiply out every line of the form `kind: a x b layers x c = n B/token`."""
    checked = 0
    for model in ALL_KINDS:
        for line in explain(model, options=SizeOptions(contexts=(8192,))):
            match = re.match(r"  \w+: ([\d, ]+ x [^(=]+) = ([\d,]+) B", line)
            if match:
                factors = [int(part.split()[0].replace(",", "")) for part in match[1].split(" x ")]
                assert math.prod(factors) == int(match[2].replace(",", "")), line
                checked += 1
    assert checked >= 8


def test_rows_tell_batch_layout_and_card() -> None:
    options = SizeOptions(contexts=(100,), batch_sizes=(4,), parallel=Parallel(tp=2), shared_prefix=32, gpu=CARD)
    text = "\n".join(explain(LLAMA_8B, options=options))
    assert "ceil(100 / 16) = 7 pages" in text
    assert "2 pages of prefix once = 46,137,344 B" in text  # (4 x 7 - 3 x 2) x 16 x 131,072
    assert "the fullest of 2 GPUs: 23,068,672 B" in text
    assert "memory-bound" in text
    assert "68.55 GiB usable - 7.51 GiB weights" in text
    assert text.endswith("fits")


def test_the_estimate_of_activations_says_what_it_is_of() -> None:
    (line,) = [
        line
        for line in explain(LLAMA_8B, options=SizeOptions(contexts=(100,), parallel=Parallel(tp=2), gpu=CARD))
        if "activations are those of vLLM's profile run" in line
    ]
    assert "8,192 batched tokens, 1,024 sequences x 128,256 logits of the greedy dummy run" in line
    forward = 8192 * (3 * 4096 + 4096 // 2 + 3 * 7168) * 2 + 8 * 1024**2 + 128 * 1024
    assert line.endswith(f": {forward:,} B")


def test_what_was_measured_is_not_worked_out() -> None:
    measured = Calibration(source="a log", kv_pool_bytes=1 << 30, reserve_bytes=1)
    text = "\n".join(explain(LLAMA_8B, options=SizeOptions(contexts=(100,), gpu=CARD, calibration=measured)))
    assert "activations are" not in text
    assert "room for cache, measured: 1,073,741,824 B: fits" in text
