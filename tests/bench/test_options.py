"""The options of the benchmark: each part takes those that bear its names, and refuses what makes no sense."""

from __future__ import annotations

import pytest
import torch

from kvtool.bench.bench import how_long
from kvtool.bench.cases.latency import Latency
from kvtool.bench.cases.no_cache import NoCache
from kvtool.bench.cases.prefix import PrefixHits
from kvtool.bench.kernels.options import kernels_options
from kvtool.bench.options import PARTS, bench_options
from kvtool.cli.flags.run import Run
from kvtool.engine import config
from kvtool.system.errors import KvtoolError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input_lens": (0,)}, "input length 0"),
        ({"batch_sizes": (-1,)}, "batch size -1"),
        ({"output_len": 0}, "output length 0"),
        ({"num_iters": 0}, "num-iters 0"),
        ({"num_iters_warmup": -1}, "must not be negative"),
        ({"parts": ("speed",)}, "unknown part 'speed'"),
        ({"hit_rates": (1.5,)}, "hit rate 1.5"),
        ({"request_rate": 0.0}, "request rate"),
    ],
)
def test_options_that_make_no_sense_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(KvtoolError, match=message):
        bench_options("cpu", **given)


def test_an_option_goes_to_every_part_that_has_one_of_its_name() -> None:
    """Lengths given rule every part; what is not given is the part's own default, and parts run in one order."""
    latency, hits, ways = bench_options(
        "cpu",
        parts=("no-cache", "prefix", "latency"),
        input_lens=(32, 48),
        output_len=7,
        num_iters=None,
        hit_rates=None,
    ).parts
    assert latency == Latency(input_lens=(32, 48), batch_sizes=(1, 8), output_len=7)
    assert hits == PrefixHits(input_lens=(32, 48), output_len=7, hit_rates=(0.0, 0.5, 0.9))
    assert ways == NoCache(input_lens=(32, 48), output_len=7)
    assert bench_options("cpu", parts=("prefix",), batch_sizes=(4,)).parts == (PrefixHits.default(gpu=False),)
    with pytest.raises(TypeError, match="no part has an option input_len"):
        bench_options("cpu", input_len=(4,))
    bench_options("cpu", parts=("workload",), prefix_len=2048)  # which fills the sequences of fragmentation alone


@pytest.mark.parametrize("gpu", [False, True])
def test_defaults_of_every_part_make_sense(gpu: bool) -> None:
    for name, kind in PARTS.items():
        part = kind.default(gpu=gpu)
        assert part.longest_tokens > 1, name
        assert part.most_sequences >= 1, name


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({}, "3 measured iterations a case, about 64 s at most: fewer where this machine is slower"),
        ({"num_iters": 1}, "1 measured iteration a case, however long they take"),
    ],
)
def test_how_long_it_takes_is_said_beforehand(asked: dict[str, int], told: str) -> None:
    """Three parts of 20 s, and twice 2 s for the device's limits."""
    assert how_long(bench_options("cpu", **asked)) == told


@pytest.mark.parametrize(("kind", "pages_of"), [("cuda", 64), ("cpu", 16)])
def test_pages_are_a_tile_of_keys_long_on_cuda_where_nobody_says_how_long(
    monkeypatch: pytest.MonkeyPatch, kind: str, pages_of: int
) -> None:
    monkeypatch.setattr(config, "resolve_device", lambda name: torch.device(kind))
    monkeypatch.setattr("kvtool.bench.kernels.options.resolve_device", lambda name: torch.device(kind))
    assert Run().config(None).block_size == pages_of
    assert Run(block_size=32).config(None).block_size == 32
    assert kernels_options("auto").block_sizes == (pages_of,)
    assert kernels_options("auto", block_sizes=(16, 32)).block_sizes == (16, 32)
