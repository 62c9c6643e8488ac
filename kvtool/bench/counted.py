"""A benchmark of parts that only count: no weights, no device, no limits to measure."""

from __future__ import annotations

from kvtool.bench.cases.base import Part
from kvtool.bench.cases.fragmentation import FragmentationPart
from kvtool.bench.definitions import DEFINITIONS
from kvtool.bench.harness import Value
from kvtool.bench.options import BenchOptions
from kvtool.bench.session import Outcome, Progress
from kvtool.catalog.model import Model
from kvtool.engine.config import EngineConfig, truncated
from kvtool.machine.environment import describe_environment
from kvtool.results import BenchDocument, FragmentationCase
from kvtool.sizing.formats import parse_cache_format
from kvtool.sizing.layers import layer_specs


def counted(model: Model, config: EngineConfig, options: BenchOptions, progress: Progress) -> Outcome[BenchDocument]:
    """The cases of all parts; those that were done, where Ctrl-C came. Raises KvtoolError."""
    cases: list[FragmentationCase] = []
    interrupted = False
    try:
        for part in options.parts:
            cases += _cases(part, model, config, options.seed, progress)
    except KeyboardInterrupt:
        interrupted = True
    document = BenchDocument(
        environment=describe_environment("cpu"),
        definitions=DEFINITIONS,
        assumptions=[
            "requests are counted, token by token: nothing is computed, and no time passes but their steps",
            "lengths are lognormal with the means of ShareGPT's prompts and answers (161 and 338 tokens)",
            *(["interrupted: cases are missing"] if interrupted else []),
        ],
        cases=list(cases),
    )
    return Outcome(document=document, interrupted=interrupted, errors=[])


def _cases(part: Part, model: Model, config: EngineConfig, seed: int, progress: Progress) -> list[FragmentationCase]:
    assert isinstance(part, FragmentationPart), "the only part that counts"
    model = truncated(model, config.num_layers)
    cache_format = parse_cache_format(config.kv_cache_dtype, model.dtype)
    token_bytes = sum(spec.bytes_per_token for spec in layer_specs(model, cache_format))
    inputs: dict[str, Value] = {
        "model": model.id,
        "kv_cache_dtype": cache_format.name,
        "block_size": config.block_size,
        "num_layers": model.num_layers,
        "seed": seed,
    }
    arms = part.arms(config.block_size)
    found = []
    for number, arm in enumerate(arms):
        progress(f"fragmentation: {arm}", number / len(arms))
        found.append(part.case_of(arm, token_bytes, config.block_size, inputs, seed))
    return found
