"""By layer, with the same queries, keys and values: how far what a format stores, and attention over it, is off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from kvtool.bench.accuracy.methods import Method
from kvtool.engine.batch import sequence_rows
from kvtool.engine.pool import Amax
from kvtool.kernels.interface import Kernels
from kvtool.kernels.packed.pages import PackedPages
from kvtool.kernels.packed.rotation import rotate_heads
from kvtool.kernels.pages import Pages
from kvtool.kernels.rows import Rows, Softmax
from kvtool.kernels.sparse.streaming import StreamingPages
from kvtool.sizing.specs import HeadsSpec

NO_SCALE = 1e-30  # of a norm: below, nothing is relative to it


@dataclass(frozen=True, slots=True)
class Seen:
    """One layer of the reference's run: q [L,HQ,D], k [L,HKV,D], v [L,HKV,DV], what attention made of them, and how."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    softmax: Softmax

    def amax(self, *, rotated: bool) -> Amax:
        """The largest magnitudes of K and V, as they would be stored."""
        k, v = (rotate_heads(x) if rotated else x for x in (self.k, self.v))
        return float(k.abs().max()), float(v.abs().max())


@dataclass(frozen=True, slots=True)
class LayerErrors:
    """By layer, relative to the reference's norm."""

    key: list[float] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    attention: list[float] = field(default_factory=list)

    def sparing(self, layers: Sequence[int]) -> LayerErrors:
        """The same where those layers keep the run's own cache."""

        def spared(errors: list[float]) -> list[float]:
            return [0.0 if layer in layers else error for layer, error in enumerate(errors)]

        return LayerErrors(spared(self.key), spared(self.value), spared(self.attention))


class _Watched:
    """The kernels of a run, which note what attention is asked."""

    def __init__(self, base: Kernels, tokens: int) -> None:
        self._base, self._tokens = base, tokens
        self.seen: list[Seen] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)

    def prefill(self, q: Tensor, pages: Pages, rows: Rows, softmax: Softmax) -> Tensor:
        out = self._base.prefill(q, pages, rows, softmax)
        k, v = stored_tokens(pages, self._tokens)
        self.seen.append(Seen(q.clone(), k, v, out.clone(), softmax))
        return out


def watch(reference: Method, token_ids: list[int]) -> list[Seen]:
    """What attention of each layer is asked on this text; nothing of a model that keeps latents."""
    if not all(isinstance(spec, HeadsSpec) for spec in reference.specs):
        return []
    watched = _Watched(reference.kernels, len(token_ids))
    reference.logits(token_ids, reference.layers(len(token_ids)), cast("Kernels", watched))
    return watched.seen


def layer_errors(method: Method, seen: list[Seen]) -> LayerErrors:
    """Of each layer on its own: errors of earlier layers are not in its inputs."""
    errors = LayerErrors()
    for index, layer in enumerate(seen):
        out, (k, v) = _attend(method, index, layer)
        held = _held(method.layer(index, 1), len(k))
        errors.key.append(_relative(k[held], layer.k[held]))
        errors.value.append(_relative(v[held], layer.v[held]))
        errors.attention.append(_relative(out, layer.out))
    return errors


def _attend(method: Method, index: int, layer: Seen) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Attention of the layer's queries over its K and V as the method keeps them, and those K and V at the end."""
    device, block_size, length = layer.q.device, method.loaded.config.block_size, len(layer.q)
    pages, step = method.layer(index, length), method.step_tokens or length
    found = []
    for start in range(0, length, step):
        stop = min(start + step, length)
        dtype = layer.q.dtype
        slots = torch.arange(start, stop, device=device)
        method.kernels.store(layer.k[start:stop].to(dtype), layer.v[start:stop].to(dtype), pages, slots)
        rows = sequence_rows(start, stop, block_size, device)
        found.append(method.kernels.prefill(layer.q[start:stop], pages, rows, layer.softmax))
    return torch.cat(found), stored_tokens(pages, length)


def stored_tokens(pages: Pages, tokens: int) -> tuple[Tensor, Tensor]:
    """k and v fp32 [L,HKV,D] of a sequence in the first pages, times their scales."""
    if isinstance(pages, PackedPages):
        return pages.read(torch.arange(len(pages.k), device=pages.k.device), tokens, torch.float32)
    assert pages.v is not None
    found = []
    for stored, scale in ((pages.k, pages.k_scale), (pages.v, pages.v_scale)):
        wide = stored.flatten(0, 1)[:tokens].float()
        found.append(wide * (scale.flatten(0, 1)[:tokens].unsqueeze(-1) if isinstance(scale, Tensor) else scale))
    return found[0], found[1]


def _held(pages: Pages, tokens: int) -> Tensor:
    """The tokens [n] whose K and V a cache still has as they came."""
    at = torch.arange(tokens, device=pages.k.device)
    if not isinstance(pages, StreamingPages):
        return at
    page = at // pages.block_size
    return at[(page == 0) | (page > pages.passed(tokens))]


def _relative(found: Tensor, expected: Tensor) -> float:
    wide = expected.float()
    return float((found.float() - wide).norm() / wide.norm().clamp(min=NO_SCALE))
