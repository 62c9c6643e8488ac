"""AIPerf's profile_export_aiperf.json: summaries of its requests, those that are defined as ours.

As aiperf/common/models/export_models.py of 0.13 writes it. Its `inter_token_latency` of a request is
(latency - TTFT) / (n - tokens of the first event): our TPOT where the first event brings one token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvtool.compare.foreign.base import Foreign, count, endpoint_case, number
from kvtool.errors import KvtoolError
from kvtool.results import Metrics, Summary

TOOL = "aiperf"
FILE_NAME = "profile_export_aiperf.json"
MILLISECONDS = {"ms": 1.0, "sec": 1e3, "s": 1e3, "us": 1e-3, "ns": 1e-6}


def is_aiperf(found: Any) -> bool:
    """Whether a JSON value is one of its exports; genai-perf's, which it followed, has no version."""
    return isinstance(found, dict) and "aiperf_version" in found and "request_latency" in found


def read_aiperf(found: Mapping[str, Any], where: str) -> Foreign:
    """One case. Raises KvtoolError for an export without a stream's times."""
    if not isinstance(found.get("time_to_first_token"), dict):
        raise KvtoolError(f"{where} has no time_to_first_token: run aiperf with --streaming")
    requests, failed = (_counted(found, name) for name in ("request_count", "error_request_count"))
    latency = found["request_latency"]
    case = endpoint_case(
        TOOL,
        {
            "input_len": _alike(found, "input_sequence_length"),
            "output_len": _alike(found, "output_sequence_length"),
            "num_prompts": requests + failed,
            "concurrency": _setting(found.get("input_config"), "concurrency"),
            "request_rate": _setting(found.get("input_config"), "request_rate"),
        },
        Metrics(
            ttft_ms=_summary(found["time_to_first_token"], requests, f"{where}, time_to_first_token"),
            tpot_ms=_optional(found, "inter_token_latency", requests, where),
            itl_ms=None,
            e2e_ms=_summary(latency, requests, f"{where}, request_latency"),
            prefill_tokens_per_s=None,
            decode_tokens_per_s=None,
        ),
        requests=requests + failed,
        failed=failed,
    )
    remark = (
        "its inter_token_latency of a request is our TPOT, where the first event brings one token; it has no requests "
        "of its own in this file, so that no interval can be told"
    )
    return Foreign(TOOL, [case], (remark,))


def _summary(found: Any, requests: int, where: str) -> Summary:
    """In milliseconds; `requests` where it does not tell how many it is of."""
    if not isinstance(found, dict) or found.get("unit") not in MILLISECONDS:
        raise KvtoolError(f"{where} has no unit of time ({', '.join(MILLISECONDS)})")
    factor = MILLISECONDS[found["unit"]]
    values = {name: factor * number(found, name, where) for name in ("p50", "p90", "p95", "p99")}
    n = count(found, "count", where) if found.get("count") is not None else requests
    return Summary(mean=factor * number(found, "avg", where), std=factor * number(found, "std", where), n=n, **values)


def _optional(found: Mapping[str, Any], name: str, requests: int, where: str) -> Summary | None:
    return _summary(found[name], requests, f"{where}, {name}") if isinstance(found.get(name), dict) else None


def _counted(found: Mapping[str, Any], name: str) -> int:
    """A count that it writes as a mean of one value; 0 where there is none."""
    told = found.get(name)
    return count(told, "avg", name) if isinstance(told, dict) else 0


def _alike(found: Mapping[str, Any], name: str) -> int | None:
    """The one length that all have; None where they differ."""
    told = found.get(name)
    if not isinstance(told, dict) or told.get("min") is None or told.get("min") != told.get("max"):
        return None
    return count(told, "min", name)


def _setting(config: Any, name: str) -> int | float | None:
    """Of its configuration, at whatever level that release has it; None where it is not set, or set to several."""
    if isinstance(config, dict):
        own = config.get(name)
        if isinstance(own, int | float) and not isinstance(own, bool):
            return own
        found = {value for item in config.values() if (value := _setting(item, name)) is not None}
    elif isinstance(config, list):
        found = {value for item in config if (value := _setting(item, name)) is not None}
    else:
        return None
    return found.pop() if len(found) == 1 else None
