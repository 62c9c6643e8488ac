"""Each layer's cache as vLLM keeps it: so many bytes a token in blocks of so many tokens, or a state a block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from kvtool.catalog.model import GatedDeltaNet, KimiDeltaAttention, Mamba2, Model
from kvtool.sizing.engines.vllm.inputs import Inputs
from kvtool.sizing.layers import specs_by_layer
from kvtool.sizing.specs import (
    CacheSpec,
    ChunkedSpec,
    CrossSpec,
    FullSpec,
    IndexerSpec,
    LatentSpec,
    SharedSpec,
    SlidingSpec,
    StateSpec,
)
from kvtool.units import ceil_div

# vLLM's names of its specs.
FULL, MLA, CROSS = "FullAttentionSpec", "MLAAttentionSpec", "CrossAttentionSpec"
SLIDING, CHUNKED, STATE = "SlidingWindowSpec", "ChunkedLocalAttentionSpec", "MambaSpec"
_KINDS: dict[type[CacheSpec], str] = {
    FullSpec: FULL,
    LatentSpec: MLA,
    IndexerSpec: MLA,
    SlidingSpec: SLIDING,
    ChunkedSpec: CHUNKED,
    CrossSpec: CROSS,
    StateSpec: STATE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCache:
    """One cache of layer `layer` on one rank; equal ones may share a group.

    `spec` says what a token or a sequence takes. A block holds `block_size` tokens, or one state, in a page of
    `page_bytes`: its content, or `padded_bytes` where it is padded to the pages of other layers. `state_blocks` is how
    many states a request holds.
    """

    kind: str
    spec: CacheSpec
    block_size: int
    padded_bytes: int | None = None
    state_blocks: int = 0
    layer: int = field(default=0, compare=False)

    @property
    def content_bytes(self) -> int:
        """Bytes of a page without padding."""
        return self.spec.state_bytes if isinstance(self.spec, StateSpec) else self.spec.page_bytes(self.block_size)

    @property
    def page_bytes(self) -> int:
        return self.content_bytes if self.padded_bytes is None else self.padded_bytes

    @property
    def window(self) -> int | None:
        """Tokens of a sliding window or a chunk, also where the layer is kept as a full one."""
        return self.spec.window if isinstance(self.spec, SlidingSpec | ChunkedSpec) else None

    def reserved_tokens(self, tokens: int, inputs: Inputs) -> int:
        """Tokens that vLLM admits a request of `tokens` tokens with. Windows keep what is in flight as well."""
        match self.kind:
            case "SlidingWindowSpec":
                return min((self.window or 0) - 1 + inputs.in_flight_tokens, tokens)
            case "ChunkedLocalAttentionSpec":
                return min((self.window or 0) + inputs.in_flight_tokens, tokens)
            case "CrossAttentionSpec":
                return inputs.encoder_tokens
            case _:
                return ceil_div(tokens, inputs.parallel.dcp)

    def blocks(self, tokens: int, inputs: Inputs) -> int:
        """Blocks that a request of `tokens` tokens holds at most. A window need not begin where a block does."""
        if self.kind == STATE:
            return self.state_blocks
        more = 1 if self.kind == SLIDING else 0
        return ceil_div(self.reserved_tokens(tokens, inputs), self.block_size) + more


def layer_caches(inputs: Inputs, *, block_size: int, state_page_bytes: int | None = None) -> list[list[LayerCache]]:
    """The caches of every layer, an indexer's before its layer's. Raises KvtoolError where tp cannot deal them out.

    `state_page_bytes` is what state pages are padded to.
    """
    model = inputs.model
    by_layer = specs_by_layer(model, inputs.cache_format, tp=inputs.parallel.tp, state=inputs.state)
    state_blocks = _state_blocks(inputs)
    state_block_size = block_size if inputs.aligned_state else inputs.max_model_len
    caches = []
    for layer, specs in enumerate(by_layer):
        caches.append(
            [
                LayerCache(
                    kind=STATE,
                    spec=spec,
                    block_size=state_block_size,
                    padded_bytes=state_page_bytes,
                    state_blocks=state_blocks,
                    layer=layer,
                )
                if isinstance(spec, StateSpec)
                else LayerCache(kind=_KINDS[type(spec)], spec=spec, block_size=block_size, layer=layer)
                for spec in _stored(specs)
            ]
        )
    return caches


def _stored(specs: tuple[CacheSpec, ...]) -> Iterator[CacheSpec]:
    """What a layer stores, its index keys first; how much of it is read makes no difference here."""
    kept = [spec for spec in specs if not isinstance(spec, SharedSpec)]
    for spec in sorted(kept, key=lambda spec: not isinstance(spec, IndexerSpec)):
        yield replace(spec, top_k_tokens=None) if isinstance(spec, FullSpec | LatentSpec) else spec


def _state_blocks(inputs: Inputs) -> int:
    """States a request holds: one; with prefix caching two, and one more for a checkpoint inside of a prefill."""
    if not inputs.aligned_state:
        return 1
    return 2 + exports_checkpoints(inputs)


def exports_checkpoints(inputs: Inputs) -> bool:
    """Whether the state layers can write a state out of the middle of a prefill: all Mamba-2 layers, Kimi K3's, and
    gated delta nets of Qwen where FlashInfer computes them.
    """
    kinds = {type(layer.cache) for layer in inputs.model.layers}
    if Mamba2 in kinds:
        return True
    if KimiDeltaAttention in kinds:
        return (inputs.model.architecture or "").startswith("kimi_k3")
    return GatedDeltaNet in kinds and flashinfer_delta_net(inputs)


def flashinfer_delta_net(inputs: Inputs) -> bool:
    """Whether FlashInfer computes the prefill of gated delta nets: Qwen's on Hopper, on Blackwell with CUDA 13."""
    return _is_qwen(inputs.model) and inputs.capability in (90, 100, 103, 120)


def _is_qwen(model: Model) -> bool:
    return (model.architecture or "").startswith("qwen3")
