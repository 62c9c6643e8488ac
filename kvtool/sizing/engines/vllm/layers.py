"""Each layer's cache as vLLM keeps it: so many bytes a token in blocks of so many tokens, or a state a block."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from kvtool.catalog.model import GatedDeltaNet, KimiDeltaAttention, Mamba2, Model
from kvtool.sizing.engines.vllm.inputs import Inputs, has_compressed
from kvtool.sizing.layers import specs_by_layer
from kvtool.sizing.specs import (
    CacheSpec,
    ChunkedSpec,
    CompressedSpec,
    CompressorSpec,
    CrossSpec,
    FullSpec,
    IndexerSpec,
    LatentSpec,
    SharedSpec,
    SlidingRowSpec,
    SlidingSpec,
    StateSpec,
)
from kvtool.units import ceil_div, round_up

# vLLM's names of its specs.
FULL, MLA, CROSS = "FullAttentionSpec", "MLAAttentionSpec", "CrossAttentionSpec"
SLIDING, CHUNKED, STATE = "SlidingWindowSpec", "ChunkedLocalAttentionSpec", "MambaSpec"
SLIDING_MLA = "SlidingWindowMLASpec"
_KINDS: dict[type[CacheSpec], str] = {
    FullSpec: FULL,
    LatentSpec: MLA,
    IndexerSpec: MLA,
    SlidingSpec: SLIDING,
    ChunkedSpec: CHUNKED,
    CrossSpec: CROSS,
    StateSpec: STATE,
    CompressedSpec: MLA,
    SlidingRowSpec: SLIDING_MLA,
    CompressorSpec: SLIDING_MLA,
}
# DeepSeek-V4: windows come in blocks of their own, what its compressors keep in smaller ones still; pages are aligned.
_ROW_WINDOW_BLOCK = 64
_COMPRESSOR_BLOCKS = {4: 4, 128: 8}
_COMPRESSED_PAGE_ALIGNMENT = 576
_SMALLEST_BLOCK = 16  # of the kernels that attend to windows: FlashAttention, FlashInfer, Triton


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCache:
    """The cache number `position` of layer `layer` on one rank; equal ones may share a group.

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
    position: int = field(default=0, compare=False)

    @property
    def content_bytes(self) -> int:
        """Bytes of a page without padding."""
        match self.spec:
            case StateSpec():
                return self.spec.state_bytes
            case CompressorSpec():
                return self.spec.state_bytes // self.spec.window * self.block_size
            case _:
                return self.spec.page_bytes(self.block_size)

    @property
    def page_bytes(self) -> int:
        return self.content_bytes if self.padded_bytes is None else self.padded_bytes

    @property
    def window(self) -> int | None:
        """Tokens of a sliding window or a chunk, also where the layer is kept as a full one."""
        windows = SlidingSpec | ChunkedSpec | SlidingRowSpec | CompressorSpec
        return self.spec.window if isinstance(self.spec, windows) else None

    def reserved_tokens(self, tokens: int, inputs: Inputs) -> int:
        """Tokens that vLLM admits a request of `tokens` tokens with. Windows keep what is in flight as well."""
        if self.kind == CROSS:
            return inputs.encoder_tokens
        if self.kind in (SLIDING, SLIDING_MLA, CHUNKED):
            # The newest token of a sliding window is in flight itself.
            more = 0 if self.kind == CHUNKED else inputs.lookahead_tokens - 1
            return min((self.window or 0) + more + inputs.in_flight_tokens, tokens)
        return ceil_div(tokens, inputs.parallel.dcp)

    def blocks(self, tokens: int, inputs: Inputs) -> int:
        """Blocks that a request of `tokens` tokens holds at most. A window need not begin where a block does."""
        if self.kind == STATE:
            return self.state_blocks
        more = 1 if self.kind in (SLIDING, SLIDING_MLA) else 0
        return ceil_div(self.reserved_tokens(tokens, inputs), self.block_size) + more


def layer_caches(inputs: Inputs, *, block_size: int, state_page_bytes: int | None = None) -> list[list[LayerCache]]:
    """The caches of every layer. Raises KvtoolError where tp cannot deal them out.

    `state_page_bytes` is what state pages are padded to.
    """
    state = replace(inputs.state, undrafted=inputs.rules.undrafted_convolutions)
    by_layer = specs_by_layer(inputs.model, inputs.cache_format, tp=inputs.parallel.tp, state=state)
    builder = _Builder(
        block_size=block_size,
        state_block_size=block_size if inputs.aligned_state else inputs.max_model_len,
        state_blocks=_state_blocks(inputs),
        state_page_bytes=state_page_bytes,
        aligned_pages=has_compressed(inputs.model),
        window_block_size=_SMALLEST_BLOCK if inputs.rules.small_window_blocks else block_size,
    )
    return [
        [
            builder.cache(spec, layer, position)
            for position, spec in enumerate(specs)
            if not isinstance(spec, SharedSpec)
        ]
        for layer, specs in enumerate(by_layer)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Builder:
    """Makes a layer's cache out of its spec, in blocks of the sizes settled on."""

    block_size: int
    state_block_size: int
    state_blocks: int
    state_page_bytes: int | None
    aligned_pages: bool
    window_block_size: int

    def cache(self, spec: CacheSpec, layer: int, position: int) -> LayerCache:
        if isinstance(spec, StateSpec):
            return LayerCache(
                kind=STATE,
                spec=replace(spec, slots=1),  # the states of drafted tokens are blocks of their own
                block_size=self.state_block_size,
                padded_bytes=self.state_page_bytes,
                state_blocks=self.state_blocks,
                layer=layer,
                position=position,
            )
        cache = LayerCache(
            kind=_KINDS[type(spec)],
            spec=_layout(spec),
            block_size=self._tokens(spec),
            layer=layer,
            position=position,
        )
        if not self.aligned_pages:
            return cache
        return replace(cache, padded_bytes=round_up(cache.content_bytes, _COMPRESSED_PAGE_ALIGNMENT))

    def _tokens(self, spec: CacheSpec) -> int:
        match spec:
            case SlidingRowSpec():
                return _ROW_WINDOW_BLOCK
            case CompressorSpec():
                return _COMPRESSOR_BLOCKS[spec.ratio]
            case SlidingSpec():
                return self.window_block_size
            case _:
                return self.block_size


def _layout(spec: CacheSpec) -> CacheSpec:
    """How much of it a step reads makes no difference to how it is kept."""
    if isinstance(spec, FullSpec | LatentSpec):
        return replace(spec, top_k_tokens=None)
    return replace(spec, top_k_rows=None) if isinstance(spec, CompressedSpec) else spec


def _state_blocks(inputs: Inputs) -> int:
    """States a request holds: one; with prefix caching two, and one more for a checkpoint inside of a prefill; besides
    one for every drafted token, since states are aligned.
    """
    drafted = inputs.speculative_tokens if inputs.rules.aligned_states else 0
    if not inputs.aligned_state:
        return 1 + drafted
    return 2 + drafted + exports_checkpoints(inputs)


def exports_checkpoints(inputs: Inputs) -> bool:
    """Whether the state layers can write a state out of the middle of a prefill, of the kinds that do in this release:
    all Mamba-2 layers, Kimi K3's, and gated delta nets of Qwen where FlashInfer computes them.
    """
    kinds = {type(layer.cache) for layer in inputs.model.layers} & {*inputs.rules.state_checkpoints}
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
