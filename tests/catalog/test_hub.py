from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvtool.catalog import hub
from kvtool.system.errors import KvtoolError
from tests.catalog.data import LLAMA


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the Hub answers: `config` (bytes or an exception), `status`, a count `params`; `asked` collects the URLs."""
    state: dict[str, Any] = {"config": json.dumps(LLAMA).encode(), "status": 200, "params": 1000, "asked": []}

    @contextmanager
    def stream(method: str, url: str, *, headers: dict[str, str], timeout: float) -> Iterator[Any]:
        assert (method, timeout) == ("GET", 2.0)
        assert headers["user-agent"]
        state["asked"].append(url)
        if isinstance(state["config"], Exception):
            raise state["config"]
        told = state.get("by_name", {}).get(url.rsplit("/", 1)[-1], state["config"])
        yield SimpleNamespace(status_code=state["status"], iter_bytes=lambda: iter([told]))

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: SimpleNamespace(stream=stream))
    monkeypatch.setattr(hub, "_count", lambda name: (state["params"], 2000))
    return state


def test_config_and_parameter_count(answers: dict[str, Any]) -> None:
    model = hub.hub_model("owner/name")
    assert (model.id, model.source, model.num_layers) == ("owner/name", "huggingface.co/owner/name", 4)
    assert (model.params_total, model.params_source) == (1000, "safetensors headers on the Hub")
    assert len(answers["asked"]) == 1
    assert answers["asked"][0].endswith("/owner/name/resolve/main/config.json")


def test_modelopt_s_own_file_is_asked_for_where_a_name_tells_of_it(answers: dict[str, Any]) -> None:
    """nvidia/Llama-3.1-70B-Instruct-FP8 has its quantisation in hf_quant_config.json alone."""
    config, export = json.dumps(LLAMA).encode(), b'{"quantization": {"quant_algo": "FP8"}}'
    answers["by_name"] = {"config.json": config, "hf_quant_config.json": export}
    found = hub.hub_model("owner/name-FP8").quantisation
    assert found is not None
    assert (found.method, found.bits_per_weight) == ("modelopt", 8)
    answers["by_name"]["hf_quant_config.json"] = b"<html>"
    assert hub.hub_model("owner/name-FP8").quantisation is None


def test_without_safetensors_there_is_no_count(answers: dict[str, Any]) -> None:
    answers["params"] = None
    assert hub.hub_model("owner/name").params_total is None


def test_a_connection_that_breaks_leaves_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own error is neither an OSError nor a ValueError."""

    class ConnectError(Exception): ...

    def breaks(name: str) -> None:
        raise ConnectError("connection refused")

    monkeypatch.setattr("huggingface_hub.get_safetensors_metadata", breaks)
    assert hub._count("owner/name") == (None, None)


@pytest.mark.parametrize("name", ["x/eagle-", "x/a--b", "x/a..b", "x/漢字"])
def test_a_name_that_no_repository_has(name: str) -> None:
    with pytest.raises(KvtoolError, match="is no name of a repository on the Hub"):
        hub.hub_model(name)


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "only for users who are logged in"), (403, "is gated"), (404, "is not there"), (500, "HTTP status 500")],
)
def test_refusals_of_the_hub(answers: dict[str, Any], status: int, message: str) -> None:
    answers["status"] = status
    with pytest.raises(KvtoolError, match=message):
        hub.hub_model("owner/name")
    assert len(answers["asked"]) == 1


@pytest.mark.parametrize("error", [OSError("no route"), TimeoutError(), ValueError("unknown url type")])
def test_no_network_is_said_after_one_try(answers: dict[str, Any], error: Exception) -> None:
    answers["config"] = error
    with pytest.raises(KvtoolError, match="the Hub cannot be reached"):
        hub.hub_model("owner/name")
    assert len(answers["asked"]) == 1


def test_offline_asks_nobody(answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(KvtoolError, match="the Hub cannot be reached"):
        hub.hub_model("owner/name")
    assert answers["asked"] == []


def test_a_cached_config_needs_no_network(
    answers: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, file: str(path))
    assert hub.hub_model("owner/name").id == "owner/name"
    assert answers["asked"] == []


def test_an_answer_that_is_no_config(answers: dict[str, Any]) -> None:
    answers["config"] = b"<html>"
    with pytest.raises(KvtoolError, match=r"huggingface\.co/owner/name is not JSON"):
        hub.hub_model("owner/name")


class Answer(BaseHTTPRequestHandler):
    """A server that sends a byte more than a config may have, or no such page."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/long" else 404)
        self.end_headers()
        if self.path == "/long":
            self.wfile.write(b"x" * 11)

    def log_message(self, *_: object) -> None: ...


def test_the_clients_own_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the Hub client itself, so that what it offers under these names is not only assumed."""
    monkeypatch.setattr(hub, "_MAX_CONFIG_BYTES", 10)
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            assert hub._get(f"{url}/long") == (200, b"x" * 10)
            assert hub._get(f"{url}/none") == (404, b"")
        finally:
            server.shutdown()
            thread.join()
    with pytest.raises(KvtoolError, match="the Hub cannot be reached"):
        hub._download("owner/name", url)
