"""`llama-bench -o json`: tests of prompts (pp) and of generated tokens (tg) behind a depth, joined to cases of ours.

A prompt of N tokens and M tokens generated at depth N are one case. As tools/llama-bench/README.md of llama.cpp says,
its times leave tokenizing and sampling out: its rates are prefill and decode alone, and there is no TTFT.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvtool.compare.foreign.base import NO_MEMORY, NOTHING, Foreign, count, number, numbers
from kvtool.results import AnyCase, Check, LatencyCase, Metrics, Roofline, summarise
from kvtool.system.errors import KvtoolError

TOOL = "llama-bench"
Test = Mapping[str, Any]


def is_llama_bench(found: Any) -> bool:
    """Whether a JSON value is a list of its tests."""
    return (
        isinstance(found, list)
        and bool(found)
        and all(
            isinstance(test, dict) and {"n_prompt", "n_gen", "avg_ts", "samples_ns"} <= test.keys() for test in found
        )
    )


def read_llama_bench(tests: Sequence[Test], where: str) -> Foreign:
    """A case for every generation with the prompt that is as long as its depth, and for prompts alone. Raises
    KvtoolError where no test is either."""
    prompts = {_key(test, count(test, "n_prompt", where)): test for test in tests if not test["n_gen"]}
    generated = [test for test in tests if test["n_gen"] and not test["n_prompt"]]
    cases: list[AnyCase] = []
    joined = set()
    for test in generated:
        key = _key(test, count(test, "n_depth", where) if "n_depth" in test else 0)
        joined.add(key)
        cases.append(_case(prompts.get(key), test, key[-1], where))
    cases += [_case(test, None, key[-1], where) for key, test in prompts.items() if key not in joined]
    if not cases:
        raise KvtoolError(f"{where} has only tests of prompts and generation together (-pg): run -p and -n apart")
    return Foreign(TOOL, cases, tuple(_remarks(len(tests) - len(prompts) - len(generated))))


def _remarks(together: int) -> Iterator[str]:
    yield "its rates are prefill and decode without tokenizing and sampling; it has no TTFT, and TPOT is time / tokens"
    if together:
        yield f"{together} tests of prompts and generation together (pg) are left out: their rate is neither"


def _key(test: Test, tokens: int) -> tuple[Any, ...]:
    """What a prompt and a generation have in common, and the tokens of the prompt, or before the generation."""
    settings = ("model_filename", "type_k", "type_v", "n_gpu_layers", "flash_attn", "n_threads", "n_batch", "n_ubatch")
    return (*(str(test.get(name)) for name in settings), tokens)


def _case(prompt: Test | None, generation: Test | None, tokens: int, where: str) -> LatencyCase:
    told = generation or prompt or {}
    output = count(generation, "n_gen", where) if generation else None
    gaps_ms = (
        [] if generation is None else [1e-6 * ns / (output or 1) for ns in numbers(generation, "samples_ns", where)]
    )
    return LatencyCase(
        name=f"{TOOL}/{tokens}" + (f"/{output}" if output else ""),
        inputs={
            "model": str(told.get("model_type")),
            "input_len": tokens,
            "output_len": output,
            "batch_size": 1,
            "kv_cache_dtype": str(told.get("type_k")),
            "threads": count(told, "n_threads", where) if "n_threads" in told else None,
        },
        samples=[],
        metrics=Metrics(
            ttft_ms=None,
            tpot_ms=summarise(gaps_ms),
            itl_ms=None,
            e2e_ms=None,
            prefill_tokens_per_s=None if prompt is None else number(prompt, "avg_ts", where),
            decode_tokens_per_s=None if generation is None else number(generation, "avg_ts", where),
        ),
        bytes=NOTHING,
        roofline=Roofline(reason=f"measured by {TOOL}"),
        memory=NO_MEMORY,
        check=Check(text=f"measured by {TOOL}"),
    )
