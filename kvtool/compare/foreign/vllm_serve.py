"""`vllm bench serve --save-result --save-detailed`: times of every request, under the definitions that are ours too.

As vllm/benchmarks/serve.py of 0.32 writes it: ttfts and itls in seconds, a request that failed with an output length
of 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvtool.compare.foreign.base import Foreign, alike, count, endpoint_case, metrics_of, number, numbers
from kvtool.results import Sample
from kvtool.system.errors import KvtoolError

TOOL = "vllm-bench-serve"


def is_vllm_serve(found: Any) -> bool:
    """Whether a JSON value is one of these results."""
    return isinstance(found, dict) and {"mean_ttft_ms", "request_throughput", "completed"} <= found.keys()


def read_vllm_serve(found: Mapping[str, Any], where: str) -> Foreign:
    """One case. Raises KvtoolError for a result without its requests: its summary has no p90 and no spread."""
    if "ttfts" not in found or "itls" not in found:
        raise KvtoolError(f"{where} has no times of its requests: write it with --save-detailed")
    ttfts, inputs, outputs = (numbers(found, name, where) for name in ("ttfts", "input_lens", "output_lens"))
    itls = found["itls"]
    if not isinstance(itls, list) or not len(ttfts) == len(itls) == len(inputs) == len(outputs):
        raise KvtoolError(f"{where} has lists of its requests that differ in length")
    samples = [
        _sample(ttft, numbers({"itls": gaps}, "itls", where), int(prompt), int(output))
        for ttft, gaps, prompt, output in zip(ttfts, itls, inputs, outputs, strict=True)
        if output
    ]
    failed = len(ttfts) - len(samples)
    rate = found.get("request_rate")
    case = endpoint_case(
        TOOL,
        {
            "model": str(found.get("model_id")),
            "input_len": alike([sample.prompt_tokens for sample in samples]),
            "output_len": alike([sample.output_tokens for sample in samples]),
            "num_prompts": len(ttfts),
            "concurrency": None if found.get("max_concurrency") is None else count(found, "max_concurrency", where),
            "request_rate": None if rate in ("inf", None) else number(found, "request_rate", where),
        },
        metrics_of(samples),
        samples,
        requests=len(ttfts),
        failed=failed,
    )
    return Foreign(TOOL, [case], ("its TTFT, TPOT (without the first token) and ITL are defined as ours",))


def _sample(ttft_s: float, gaps_s: list[float], prompt: int, output: int) -> Sample:
    """E2E as that tool has it: until the last event with a token."""
    return Sample(
        arm="baseline",
        iteration=0,
        ttft_s=ttft_s,
        e2e_s=ttft_s + sum(gaps_s),
        itl_s=gaps_s,
        output_tokens=output,
        prompt_tokens=prompt,
        cached_tokens=0,
    )
