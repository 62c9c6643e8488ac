"""What a running server says of its cache on its own pages, as the facts of a log: /metrics, /server_info, /props."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from kvtool.engine.endpoint.client import Client
from kvtool.engine.endpoint.faults import EndpointError
from kvtool.engine.endpoint.server import Server, discover
from kvtool.system.errors import KvtoolError
from kvtool.verify.facts import LogFacts, Reading, exactly
from kvtool.verify.read import read_facts

VLLM_CONFIGS = {  # of /server_info, which a server in development mode has
    "parallel_config": (
        *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "decode_context_parallel_size"),
        "enable_expert_parallel",
    ),
    "scheduler_config": ("max_num_batched_tokens", "max_num_seqs", "async_scheduling"),
    "model_config": ("quantization", "enforce_eager"),
}


def running_facts(client: Client, served_model_name: str | None = None) -> LogFacts:
    """The facts of the server's present start. Raises EndpointError where it does not answer, KvtoolError where it
    says nothing of its cache."""
    server = discover(client, served_model_name)
    if server.engine == "llama.cpp":
        return _llama_cpp(server)
    if server.engine not in ("vllm", "sglang"):
        raise KvtoolError(f"{client.address.origin} says not of which engine it is: give the log of its start instead")
    if server.page is None:
        switch = " (SGLang: --enable-metrics)" if server.engine == "sglang" else ""
        raise KvtoolError(f"{client.address.origin} has no /metrics{switch}: give the log of its start instead")
    reply = client.fetch("GET", "/metrics")
    facts = read_facts(
        reply.body.decode("utf-8", errors="replace").splitlines(), f"/metrics of {client.address.origin}"
    )
    told = _vllm(client, server) if server.engine == "vllm" else _sglang(client)
    return _with_length(
        replace(
            facts,
            version=server.version or facts.version,
            model=facts.model or server.model,
            flags={**facts.flags, **told},
        ),
        server,
    )


def _with_length(facts: LogFacts, server: Server) -> LogFacts:
    """With the longest sequence, which /v1/models tells and /metrics does not."""
    if server.max_model_len is None:
        return facts
    length = Reading(term="max_model_len", figure=exactly(server.max_model_len), rank="", start=0)
    return replace(facts, readings=(*facts.readings, length))


def _vllm(client: Client, server: Server) -> dict[str, str]:
    """The block of its attention layers, where hybrids have no other one, and what /server_info tells."""
    labels = server.page.labels.get("vllm:cache_config_info", {}) if server.page is not None else {}
    told: dict[str, str] = {}
    if labels.get("effective_attention_block_size", labels.get("block_size")) == labels.get("block_size", ""):
        told["block_size"] = labels["block_size"]
    config = _page(client, "/server_info?config_format=json").get("vllm_config")
    for name, fields in VLLM_CONFIGS.items():
        part = config.get(name) if isinstance(config, dict) else None
        told |= _flags(part if isinstance(part, dict) else {}, fields)
    return told


def _sglang(client: Client) -> dict[str, str]:
    """Its server arguments, which its log has under the same names."""
    info = _page(client, "/server_info") or _page(client, "/get_server_info")
    return _flags(info, tuple(info))


def _flags(part: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, str]:
    """Plain values as a log writes them; what is not set is left out."""
    values = {name: part.get(name) for name in names}
    return {name: str(value) for name, value in values.items() if isinstance(value, str | int | float)}


def _page(client: Client, path: str) -> Mapping[str, Any]:
    try:
        reply = client.fetch("GET", path)
        found = msgspec.json.decode(reply.body) if reply.status == 200 else None
    except (EndpointError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _llama_cpp(server: Server) -> LogFacts:
    """Slots and the tokens of each. Its pages tell no bytes: those are planned for these cells."""
    if server.slots is None or server.max_model_len is None:
        raise KvtoolError("the server shows no /props: give the log of its start instead")
    told = {"n_ctx": server.slots * server.max_model_len, "n_seq_max": server.slots}
    readings = [Reading(term=term, figure=exactly(value), rank="", start=0) for term, value in told.items()]
    return LogFacts(
        engine="llama.cpp",
        version=server.version,
        model=server.root or server.model,
        flags={"pages": "True"},
        readings=tuple(readings),
    )
