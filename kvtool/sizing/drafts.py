"""Drafts of speculative decoding: the layers that they add to a cache, and what their weights take.

vLLM: config/speculative.py, model_executor/models/{llama_eagle,llama_eagle3,qwen3_dflash,medusa}.py and *_mtp.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from kvtool.catalog.model import FullAttention, LatentAttention, Layer, Model
from kvtool.sizing.params import count_params, layer_params
from kvtool.sizing.weights import Weights
from kvtool.system.errors import KvtoolError

MTP, EAGLE, EAGLE3, DFLASH, MEDUSA, DRAFT_MODEL = "mtp", "eagle", "eagle3", "dflash", "medusa", "draft_model"
METHODS = (MTP, EAGLE, EAGLE3, DFLASH, MEDUSA, DRAFT_MODEL)
WITHOUT_MODEL = ("ngram", "suffix")
MAX_DRAFTED = 64
_EAGLE3_INPUTS = 3  # hidden states of three of the target's layers


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftRequest:
    """What was asked for: the method (None: as the draft's name says), the draft's name (None: the model's own layers)
    and tokens drafted a step. `model` is what the name resolves to, where it does.
    """

    tokens: int
    method: str | None = None
    name: str | None = None
    model: Model | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """`layers` keep a cache beside the target's; `weights_bytes` is None where it is not known. `assumption` says what
    was taken for given.
    """

    method: str
    tokens: int
    layers: tuple[Layer, ...]
    weights_bytes: int | None
    assumption: str


def parse_speculative_config(text: str) -> DraftRequest:
    """vLLM's --speculative-config, as JSON. Raises KvtoolError for what is none."""
    try:
        fields: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise KvtoolError(f'--speculative-config {text[:40]!r} is no JSON: write {{"method": "mtp", ...}}') from None
    if not isinstance(fields, dict):
        raise KvtoolError(f"--speculative-config {text[:40]!r} must be an object with num_speculative_tokens")
    return request_of(fields)


def request_of(fields: dict[str, Any]) -> DraftRequest:
    """The request that a speculative config's fields make. Raises KvtoolError."""
    method, tokens = fields.get("method"), fields.get("num_speculative_tokens")
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= MAX_DRAFTED:
        raise KvtoolError(f"--speculative-config: num_speculative_tokens {tokens!r} must be from 1 to {MAX_DRAFTED}")
    if method is not None and _method(str(method)) not in (*METHODS, *WITHOUT_MODEL):
        raise KvtoolError(f"--speculative-config: unknown method {method!r}: use one of {', '.join(METHODS)}")
    name = fields.get("model")
    return DraftRequest(
        tokens=tokens, method=None if method is None else _method(str(method)), name=None if name is None else str(name)
    )


def _method(name: str) -> str:
    """vLLM's names of a model's own layers (deepseek_mtp, qwen3_next_mtp, ...) are all mtp."""
    return MTP if name.endswith("mtp") else name


def draft_of(target: Model, request: DraftRequest) -> Draft:
    """The draft that was asked for. Raises KvtoolError where what it keeps is not known."""
    method = request.method or _method_of_name(request)
    if method in WITHOUT_MODEL:
        return _draft(method, request, (), 0, f"{method} drafts from the tokens themselves: no layers, no weights")
    if method == MTP:
        return _own_layers(target, request)
    if method == MEDUSA:
        return _medusa(target, request)
    if method in (EAGLE, EAGLE3):
        return _eagle(target, request, method)
    if request.model is None:
        raise KvtoolError(
            f"--draft {request.name}: what a {method} draft keeps is in its config: give its folder or config.json"
        )
    return _whole_model(target, request, method)


def needs_config(request: DraftRequest, *, strictly: bool = False) -> bool:
    """Whether the draft's own config says what it keeps: not for own layers and Medusa's heads; for EAGLE's it is
    better known, but not `strictly` needed.
    """
    method = request.method or _method_of_name(request)
    return method not in (MTP, MEDUSA, *((EAGLE, EAGLE3) if strictly else ()))


def with_draft(target: Model, draft: Draft) -> Model:
    """The target with the draft's layers in place of its own."""
    modules = len(draft.layers) if draft.method == MTP else 1
    return replace(target, draft_layers=draft.layers, draft_modules=modules)


def loaded_weights(weights: Weights, draft: Draft | None) -> Weights:
    """What vLLM and SGLang load: a checkpoint's own draft layers (MTP) only where they draft, and any other draft
    beside the checkpoint.
    """
    stored = _stored_draft_bytes(weights)
    if draft is not None and draft.method == MTP:
        return replace(weights, draft_bytes=0 if stored else draft.weights_bytes or 0)
    beside = 0 if draft is None else draft.weights_bytes or 0
    if weights.stored_bytes is None or not stored:
        return replace(weights, draft_bytes=beside)
    source = f"{weights.source}, without its draft layers"
    return replace(weights, stored_bytes=weights.stored_bytes - stored, draft_bytes=beside, source=source)


def _stored_draft_bytes(weights: Weights) -> int:
    """Of the model's own draft layers, where a checkpoint has room for them beside what is counted; else 0."""
    model, beyond = weights.model, weights.beyond_bytes
    in_16_bits = _weights_bytes(model, model.draft_layers, inputs=2) if model.draft_layers else None
    if in_16_bits is None or beyond is None:
        return 0
    own = round(in_16_bits * weights.format.beyond_bits / 16)
    return own if own <= beyond else 0


def _draft(method: str, request: DraftRequest, layers: tuple[Layer, ...], weights: int | None, text: str) -> Draft:
    return Draft(method=method, tokens=request.tokens, layers=layers, weights_bytes=weights, assumption=text)


def _method_of_name(request: DraftRequest) -> str:
    """What vLLM detects from the draft's name or model type (SpeculativeConfig)."""
    name = (request.name or "").lower()
    if not name:
        return MTP
    found = next((method for method in (EAGLE3, EAGLE, DFLASH, MEDUSA) if method in name.replace("-", "")), None)
    return found or DRAFT_MODEL


def _own_layers(target: Model, request: DraftRequest) -> Draft:
    """Multi-token prediction: layers like the target's last, each with a projection of two hidden states to one."""
    if not target.draft_layers:
        raise KvtoolError(f"--num-speculative-tokens {request.tokens}: no draft layers (MTP) of {target.id} are known")
    count = len(target.draft_layers)
    text = f"drafting {request.tokens} tokens a step with the model's own {count} draft layers (MTP)"
    weights = _weights_bytes(target, target.draft_layers, inputs=2)
    return _draft(MTP, request, target.draft_layers, weights, text)


def _eagle(target: Model, request: DraftRequest, method: str) -> Draft:
    """EAGLE: a decoder of its own, usually of one layer, over hidden states of the target, whose embedding it shares,
    and EAGLE 1 the head too.
    """
    inputs = 2 if method == EAGLE else _EAGLE3_INPUTS
    if request.model is not None:
        layers = request.model.layers
        text = f"{method} drafts {request.tokens} tokens a step with {request.name}: {len(layers)} layers"
        head = request.model.vocab_size or 0 if method == EAGLE3 else 0
        weights = _weights_bytes(request.model, layers, inputs=inputs, head=head)
        return _draft(method, request, layers, weights, text)
    layer = _last_growing(target)
    text = (
        f"{method} drafts {request.tokens} tokens a step: {request.name or 'its draft'} is not known here, and is "
        "taken to be one layer like the target's last, as EAGLE's drafts are (2401.15077, 2503.01840)"
    )
    return _draft(method, request, (layer,), _weights_bytes(target, (layer,), inputs=inputs), text)


def _medusa(target: Model, request: DraftRequest) -> Draft:
    """Medusa: a residual block and an output head for each drafted token, and no cache (2401.10774)."""
    hidden, vocab = target.hidden_size, target.vocab_size or 0
    weights = request.tokens * (hidden * hidden + hidden * vocab) * 2
    text = f"medusa drafts {request.tokens} tokens a step: {request.tokens} heads over the vocabulary, and no cache"
    return _draft(MEDUSA, request, (), weights, text)


def _whole_model(target: Model, request: DraftRequest, method: str) -> Draft:
    """DFlash keeps K and V of the target's tokens in its own layers; a draft model is a model of its own."""
    model = request.model
    assert model is not None
    shared = method == DFLASH  # its embedding and head are the target's
    weights = _weights_bytes(model, model.layers, inputs=len(model.layers) if shared else 0)
    if not shared and weights is not None:
        weights += 2 * model.hidden_size * (model.vocab_size or 0) * (1 if model.tie_word_embeddings else 2)
    text = f"{method} drafts {request.tokens} tokens a step with {model.id}: {len(model.layers)} layers"
    return _draft(method, request, model.layers, weights, text)


def _last_growing(target: Model) -> Layer:
    for layer in reversed(target.layers):
        if isinstance(layer.cache, LatentAttention) or type(layer.cache) is FullAttention:
            return replace(layer, indexer=None)
    raise KvtoolError(
        f"{target.id} has no layer of full attention for a draft to be like: give the draft's config.json"
    )


def _weights_bytes(model: Model, layers: tuple[Layer, ...], *, inputs: int, head: int = 0) -> int | None:
    """In 16 bits: the layers, a projection of `inputs` hidden states to one, and a head of `head` tokens. None where
    the family's blocks are not known.
    """
    if count_params(model) is None:
        return None
    params = sum(layer_params(model, layer) for layer in layers)
    return 2 * (params + inputs * model.hidden_size**2 + head * model.hidden_size)
