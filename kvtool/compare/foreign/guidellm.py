"""GuideLLM's benchmarks.json: its requests, under our definitions.

As guidellm/schemas/base/request_stats.py of 0.8.1 has them: `time_per_output_token_ms` counts the first token and the
time before it, which we call NTPOT; `inter_token_latency_ms` of a request is (last - first) / (n - 1), our TPOT.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kvtool.compare.foreign.base import Foreign, alike, count, endpoint_case, metrics_of, number
from kvtool.results import AnyCase, Sample
from kvtool.system.errors import KvtoolError

TOOL = "guidellm"


def is_guidellm(found: Any) -> bool:
    """Whether a JSON value is one of its reports."""
    benchmarks = found.get("benchmarks") if isinstance(found, dict) else None
    return isinstance(benchmarks, list) and all(
        isinstance(one, dict) and {"requests", "metrics"} <= one.keys() for one in benchmarks
    )


def read_guidellm(found: Mapping[str, Any], where: str) -> Foreign:
    """A case for each of its benchmarks, which are those of a profile. Raises KvtoolError."""
    told = [_case(benchmark, f"{where}, benchmark {place + 1}") for place, benchmark in enumerate(found["benchmarks"])]
    remarks = (
        "its inter_token_latency of a request is our TPOT; its time_per_output_token counts the first token and the "
        "time before it (our NTPOT) and is left out; it tells no gap between two tokens",
    )
    if not told:
        raise KvtoolError(f"{where} has no benchmark: it was stopped before one was done")
    return Foreign(TOOL, told, remarks)


def _case(benchmark: Mapping[str, Any], where: str) -> AnyCase:
    requests = benchmark["requests"]
    whole = list(_requests(requests, "successful"))
    samples = [_sample(request, where) for request in whole]
    failed = sum(1 for name in ("errored", "incomplete") for _ in _requests(requests, name))
    if not samples:
        raise KvtoolError(f"{where} keeps no successful request: its summaries alone have no times to compare")
    streams, rate, model = (_setting(benchmark, name) for name in ("streams", "rate", "model"))
    return endpoint_case(
        TOOL,
        {
            "model": None if model is None else str(model),
            "input_len": alike([sample.prompt_tokens for sample in samples]),
            "output_len": alike([sample.output_tokens for sample in samples]),
            "num_prompts": len(samples) + failed,
            "concurrency": 1 if _kind(benchmark) == "synchronous" else streams if isinstance(streams, int) else None,
            "request_rate": float(rate) if isinstance(rate, int | float) else None,
        },
        metrics_of(samples),
        samples,
        requests=len(samples) + failed,
        failed=failed,
    )


def _requests(requests: Any, name: str) -> Iterator[Mapping[str, Any]]:
    listed = requests.get(name) if isinstance(requests, dict) else None
    return (one for one in listed or () if isinstance(one, dict))


def _sample(request: Mapping[str, Any], where: str) -> Sample:
    """The last token is so many of its inter-token latencies behind the first."""
    output = count(request, "output_tokens", where)
    ttft_s = 1e-3 * number(request, "time_to_first_token_ms", where)
    later_s = 1e-3 * number(request, "inter_token_latency_ms", where) * (output - 1) if output > 1 else 0.0
    return Sample(
        arm="baseline",
        iteration=0,
        ttft_s=ttft_s,
        e2e_s=ttft_s + later_s,
        itl_s=[],
        output_tokens=output,
        prompt_tokens=count(request, "prompt_tokens", where),
        cached_tokens=request.get("cached_tokens") or 0,
    )


def _strategy(benchmark: Mapping[str, Any]) -> Mapping[str, Any]:
    config = benchmark.get("config")
    strategy = config.get("strategy") if isinstance(config, dict) else None
    return strategy if isinstance(strategy, dict) else {}


def _kind(benchmark: Mapping[str, Any]) -> str:
    strategy = _strategy(benchmark)
    return str(strategy.get("type_") or strategy.get("kind") or "")


def _setting(benchmark: Mapping[str, Any], name: str) -> Any:
    return _strategy(benchmark).get(name)
