"""What a server says of itself: its engine and version, the model it serves, the blocks of its cache."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from kvtool.engine.endpoint.client import Client
from kvtool.engine.endpoint.faults import EndpointError
from kvtool.engine.endpoint.prometheus import ENGINES, Page, parse_page
from kvtool.system.errors import KvtoolError, did_you_mean

OWNERS = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}
UNKNOWN = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """None: the server does not say. `model` is the name that requests bear, `root` what it was loaded from;
    `block_tokens` is the granularity of its prefix hits, `vocab_size` the model's."""

    engine: str
    version: str | None
    model: str
    root: str | None = None
    max_model_len: int | None = None
    block_tokens: int | None = None
    prefix_caching: bool | None = None
    vocab_size: int | None = None
    slots: int | None = None
    page: Page | None = None


def discover(client: Client, name: str | None = None) -> Server:
    """Ask the server for what it is; `name` is the served model where it has several. Raises EndpointError where it
    does not answer as an OpenAI-compatible one, KvtoolError for a model that it does not serve."""
    reply = client.fetch("GET", "/v1/models")
    if reply.status != 200:
        raise client.failed(reply)
    served = _served(_json(reply.body, "/v1/models"), name)
    page = metrics_page(client)
    engine = _engine(served, page)
    return _described(client, engine, served, page)


def metrics_page(client: Client) -> Page | None:
    """Its /metrics; None where it has none."""
    with contextlib.suppress(EndpointError):
        reply = client.fetch("GET", "/metrics")
        if reply.status == 200:
            return parse_page(reply.body.decode("utf-8", errors="replace"))
    return None


def _served(found: Any, name: str | None) -> Mapping[str, Any]:
    """The model that is asked for, or the only one: vLLM lists adapters behind the model that they belong to."""
    listed = found.get("data") if isinstance(found, dict) else None
    models = [one for one in listed if isinstance(one, dict) and one.get("id")] if isinstance(listed, list) else []
    if not models:
        raise EndpointError("protocol", "/v1/models lists no model: this is no OpenAI-compatible server")
    names = [str(model["id"]) for model in models]
    if name is not None:
        if name not in names:
            known = ", ".join(names[:8])
            raise KvtoolError(f"the server does not serve {name!r}, but {known}{did_you_mean(name, names)}")
        return models[names.index(name)]
    own = [model for model in models if not model.get("parent")]
    if len(own) != 1:
        raise KvtoolError(f"the server has {len(own)} models: name one of {', '.join(names[:8])} (--served-model-name)")
    return own[0]


def _engine(served: Mapping[str, Any], page: Page | None) -> str:
    """By who owns the model, else by the names of its counters: a router passes the first on."""
    owner = OWNERS.get(str(served.get("owned_by")).lower())
    if owner is not None or page is None:
        return owner or UNKNOWN
    return next((name for name, names in ENGINES.items() if page.total(names.prompt) is not None), UNKNOWN)


def _described(client: Client, engine: str, served: Mapping[str, Any], page: Page | None) -> Server:
    known: dict[str, Any] = {"version": None}
    if engine == "vllm":
        known = _vllm(client, page)
    elif engine == "sglang":
        known = _sglang(client)
    elif engine == "llama.cpp":
        known = _llama_cpp(client, served)
    limit = _count(served.get("max_model_len"))
    root = served.get("root")
    known = {"max_model_len": limit, "root": root if isinstance(root, str) else None, **known}
    return Server(engine=engine, model=str(served["id"]), page=page, **known)


def _vllm(client: Client, page: Page | None) -> dict[str, Any]:
    """Hits of a hybrid land on the blocks of its states, which its newer releases tell."""
    config = page.labels.get("vllm:cache_config_info", {}) if page is not None else {}
    caching = {"True": True, "False": False}.get(config.get("enable_prefix_caching", ""))
    version = _optional(client, "/version").get("version")
    return {
        "version": str(version) if version else None,
        "block_tokens": _count(config.get("cache_hit_alignment_tokens")) or _count(config.get("block_size")),
        "prefix_caching": caching,
    }


def _sglang(client: Client) -> dict[str, Any]:
    info = _optional(client, "/server_info") or _optional(client, "/get_server_info")
    radix_off = info.get("disable_radix_cache")
    return {
        "version": str(info["version"]) if info.get("version") else None,
        "block_tokens": _count(info.get("page_size")),
        "prefix_caching": None if radix_off is None else not radix_off,
    }


def _llama_cpp(client: Client, served: Mapping[str, Any]) -> dict[str, Any]:
    """Its slots keep every token of their last request, so that hits are to the token."""
    props, meta = _optional(client, "/props"), served.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    settings = props.get("default_generation_settings")
    limit = settings.get("n_ctx") if isinstance(settings, dict) else meta.get("n_ctx")
    build = props.get("build_info")
    return {
        "version": str(build) if build else None,
        "block_tokens": 1,
        "prefix_caching": True,
        "max_model_len": _count(limit),
        "vocab_size": _count(meta.get("n_vocab")),
        "slots": _count(props.get("total_slots")),
        "root": props.get("model_path") if isinstance(props.get("model_path"), str) else None,
    }


def _optional(client: Client, path: str) -> Mapping[str, Any]:
    """A page that not every release has, or shows: nothing where it is missing."""
    with contextlib.suppress(EndpointError):
        reply = client.fetch("GET", path)
        found = _json(reply.body, path) if reply.status == 200 else None
        return found if isinstance(found, dict) else {}
    return {}


def _json(body: bytes, path: str) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise EndpointError("json", f"{path} of the server is no JSON: {body[:40]!r}") from None


def _count(value: Any) -> int | None:
    """A whole number above 0, be it written as text."""
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def reset_cache(client: Client, server: Server) -> None:
    """Empty the server's prefix cache, as its engine allows. Raises KvtoolError where it does not."""
    ways = {"vllm": ["/reset_prefix_cache"], "sglang": ["/flush_cache"]}
    paths = ways.get(server.engine) or [f"/slots/{slot}?action=erase" for slot in range(server.slots or 0)]
    if server.engine not in ENGINES or not paths:
        raise KvtoolError(f"--reset-cache: no way is known to empty the cache of this server ({server.engine})")
    for path in paths:
        reply = client.fetch("POST", path, b"")
        said = contextlib.suppress(msgspec.DecodeError)
        found: Any = None
        with said:
            found = msgspec.json.decode(reply.body)
        if reply.status != 200 or (isinstance(found, dict) and found.get("success") is False):
            need = " (it needs VLLM_SERVER_DEV_MODE=1)" if server.engine == "vllm" and reply.status == 404 else ""
            raise KvtoolError(f"--reset-cache: the server answers {reply.status} to POST {path}{need}; leave it out")
