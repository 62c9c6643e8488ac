"""AIPerf's profile_export_aiperf.json: summaries of its requests, those that are defined as ours.

As aiperf/common/models/export_models.py of 0.13 writes it. Its `inter_token_latency` of a request is
(latency - TTFT) / (n - tokens of the first event): our TPOT where the first event brings one token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvtool.compare.foreign.base import Foreign, count, endpoint_case, number
from kvtool.results import Metrics, Summary
from kvtool.system.errors import KvtoolError

TOOL = "aiperf"
FILE_NAME = "profile_export_aiperf.json"
REMARKS = (
    "its inter_token_latency of a request is our TPOT, where the first event brings one token, and its "
    "inter_chunk_latency our ITL; it counts tokens by a tokenizer of its own, unless told to use the server's count",
    "its requests are not in this file, so that no interval can be told",
)
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
            "input_len": _length(found, "isl", "input_sequence_length"),
            "output_len": _length(found, "osl", "output_sequence_length"),
            "num_prompts": requests + failed,
            "concurrency": _number(found.get("input_config"), "concurrency"),
            "request_rate": _number(_setting(found.get("input_config"), "phases"), "rate"),
        },
        Metrics(
            ttft_ms=_summary(found["time_to_first_token"], requests, f"{where}, time_to_first_token"),
            tpot_ms=_optional(found, "inter_token_latency", requests, where),
            itl_ms=_optional(found, "inter_chunk_latency", requests, where),
            e2e_ms=_summary(latency, requests, f"{where}, request_latency"),
            prefill_tokens_per_s=None,
            decode_tokens_per_s=None,
        ),
        requests=requests + failed,
        failed=failed,
    )
    return Foreign(TOOL, [case], REMARKS)


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


def _length(found: Mapping[str, Any], asked: str, measured: str) -> int | None:
    """The length that was asked for, else the one that all requests had; None where they differ."""
    lengths = _setting(found.get("input_config"), asked)
    if isinstance(lengths, dict) and not lengths.get("stddev") and isinstance(lengths.get("mean"), int | float):
        mean: float = lengths["mean"]
        return round(mean)
    told = found.get(measured)
    if not isinstance(told, dict) or told.get("min") is None or told.get("min") != told.get("max"):
        return None
    return count(told, "min", measured)


def _number(config: Any, name: str) -> int | float | None:
    """A setting that is a number; None for any other."""
    value = _setting(config, name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _setting(config: Any, name: str) -> Any:
    """Of its configuration, at whatever level that release has it; None where it is not set, or set to several."""
    if isinstance(config, dict) and config.get(name) is not None:
        return config[name]
    items = config.values() if isinstance(config, dict) else config if isinstance(config, list) else ()
    found = [value for item in items if (value := _setting(item, name)) is not None]
    return found[0] if found and all(value == found[0] for value in found) else None
