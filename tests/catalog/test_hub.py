from __future__ import annotations

import io
import json
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request

import pytest

from kvtool.catalog import hub
from kvtool.errors import KvtoolError
from tests.catalog.data import LLAMA


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the Hub answers: `config` as bytes or an exception, `params` as a count; `asked` collects the URLs."""
    state: dict[str, Any] = {"config": json.dumps(LLAMA).encode(), "params": 1000, "asked": []}

    def open_url(request: Request, timeout: float) -> io.BytesIO:
        assert timeout <= 2
        state["asked"].append(request.full_url)
        if isinstance(state["config"], Exception):
            raise state["config"]
        return io.BytesIO(state["config"])

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "urlopen", open_url)
    monkeypatch.setattr(hub, "_count", lambda name: (state["params"], 2000))
    return state


def test_config_and_parameter_count(answers: dict[str, Any]) -> None:
    model = hub.hub_model("owner/name")
    assert (model.id, model.source, model.num_layers) == ("owner/name", "huggingface.co/owner/name", 4)
    assert (model.params_total, model.params_source) == (1000, "safetensors headers on the Hub")
    assert len(answers["asked"]) == 1
    assert answers["asked"][0].endswith("/owner/name/resolve/main/config.json")


def test_without_safetensors_there_is_no_count(answers: dict[str, Any]) -> None:
    answers["params"] = None
    assert hub.hub_model("owner/name").params_total is None


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "only for users who are logged in"), (403, "is gated"), (404, "is not there"), (500, "HTTP status 500")],
)
def test_refusals_of_the_hub(answers: dict[str, Any], status: int, message: str) -> None:
    answers["config"] = HTTPError("url", status, "no", Message(), None)
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
