"""A repository on the Hugging Face Hub -> Model: its config.json and safetensors headers, never its weights."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus
from pathlib import Path

from kvtool.catalog.hf_config import MODELOPT_NAME, model_from_config, modelopt_export, parse_json, read_config
from kvtool.catalog.model import Model
from kvtool.catalog.names import take_apart
from kvtool.catalog.safetensors_file import INDEX_NAME, indexed_bytes
from kvtool.system.errors import KvtoolError


class UnreadError(KvtoolError):
    """A repository whose config cannot be had: it says nothing of the model."""


_TIMEOUT_S = 2.0
_MAX_CONFIG_BYTES = 16 << 20
_REFUSALS = {
    401: "is not there, or only for users who are logged in (hf auth login)",
    403: "is gated: accept its terms on its page and log in (hf auth login)",
    404: "is not there, or has no config.json",
}


def hub_model(name: str, *, family: str | None = None) -> Model:
    """The model of a repository, from the local Hub cache or over the network with one short try.

    Raises KvtoolError at once when offline (HF_HUB_OFFLINE is honoured), or when there is no such repository.
    """
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_OFFLINE

    _check_name(name)
    source = f"huggingface.co/{name}"
    cached = huggingface_hub.try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        index = huggingface_hub.try_to_load_from_cache(name, INDEX_NAME)
        weights_bytes = indexed_bytes(Path(index)) if isinstance(index, str) else None
        return replace(read_config(Path(cached), id=name, family=family), source=source, weights_bytes=weights_bytes)
    if HF_HUB_OFFLINE:
        raise _offline(name)
    config = parse_json(_download(name, huggingface_hub.hf_hub_url(name, "config.json")), source)
    if "quantization_config" not in config and take_apart(name).stored:
        config |= _told_beside(name, huggingface_hub.hf_hub_url(name, MODELOPT_NAME))
    model = model_from_config(config, id=name, source=source, family=family)
    params, weights_bytes = _count(name)
    if params is None or model.quantisation is not None:  # packed weights and scales are no parameters
        return replace(model, weights_bytes=weights_bytes)
    return replace(
        model, params_total=params, params_source="safetensors headers on the Hub", weights_bytes=weights_bytes
    )


def _told_beside(name: str, url: str) -> dict[str, object]:
    """What ModelOpt's own file says of the weights, where there is one: older exports leave it out of the config."""
    try:
        return {"quantization_config": modelopt_export(parse_json(_download(name, url), url))}
    except KvtoolError:
        return {}


def _check_name(name: str) -> None:
    """Raises KvtoolError for what the Hub would take for no repository's name."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        told = "letters, digits, - _ and . without two in a row, and none of - . at an end"
        raise UnreadError(
            f"{name[:80]!r} is no name of a repository on the Hub: an owner and a name of {told}"
        ) from error


def _download(name: str, url: str) -> bytes:
    """The file at `url`: one request with a short timeout, because the Hub client would retry for half a minute."""
    try:
        status, data = _get(url)
    except Exception as error:  # of httpx or httpx2, whichever the Hub client is built on, or of the system
        raise _offline(name) from error
    if status != HTTPStatus.OK:
        reason = _REFUSALS.get(status, f"answers with HTTP status {status}")
        raise UnreadError(f"model {name!r} is not in the catalogue, and on the Hub it {reason}")
    return data


def _get(url: str) -> tuple[int, bytes]:
    """The status and the first bytes of an answer, no more than a config may have."""
    from huggingface_hub.utils import build_hf_headers, get_session

    data = bytearray()
    with get_session().stream("GET", url, headers=build_hf_headers(), timeout=_TIMEOUT_S) as response:
        for part in response.iter_bytes():
            data += part
            if len(data) >= _MAX_CONFIG_BYTES:
                break
    return response.status_code, bytes(data[:_MAX_CONFIG_BYTES])


def _offline(name: str) -> UnreadError:
    return UnreadError(f"model {name!r} is not in the catalogue, and the Hub cannot be reached: give its config.json")


def _count(name: str) -> tuple[int | None, int | None]:
    """Elements and bytes of its safetensors files; None where it has none or they cannot be read."""
    import huggingface_hub

    try:
        metadata = huggingface_hub.get_safetensors_metadata(name)
    except Exception:  # as in `_download`; the shape then says how many there are
        return None, None
    tensors = [tensor for file in metadata.files_metadata.values() for tensor in file.tensors.values()]
    weights_bytes = sum(tensor.data_offsets[1] - tensor.data_offsets[0] for tensor in tensors)
    return sum(metadata.parameter_count.values()) or None, weights_bytes or None
