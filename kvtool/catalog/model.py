"""What a model is, as far as its KV cache, its weights and its decoder need it. Facts only: no bytes.

A layer keeps one of the kinds below, and may add an indexer or cross attention. Bytes are `kvtool.sizing`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvtool.catalog.decoder import Decoder


@dataclass(frozen=True, slots=True, kw_only=True)
class FullAttention:
    """MHA, MQA or GQA: one K and one V vector per KV head for every token."""

    kv_heads: int
    k_head_dim: int
    v_head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidingAttention(FullAttention):
    """Full attention over the last `window` tokens, the current one included."""

    window: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkedAttention(FullAttention):
    """Full attention inside fixed chunks of `window` tokens (Llama 4's local layers)."""

    window: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """MLA: one compressed latent and one rotated key part per token, shared by all heads (DeepSeek-V2, 2405.04434).

    `qk_nope_head_dim`, `v_head_dim`, `q_lora_rank` shape the weights; only `kv_lora_rank + qk_rope_head_dim` is stored.
    """

    kv_lora_rank: int
    qk_rope_head_dim: int
    qk_nope_head_dim: int | None = None
    v_head_dim: int | None = None
    q_lora_rank: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedAttention:
    """DeepSeek-V4: one vector, K and V at once, of the last `window` tokens, and one for every `ratio` tokens that a
    compressor sums up (0: none). Its newest inputs it keeps in fp32: of two groups that overlap where `ratio` is 4, of
    one otherwise.
    """

    head_dim: int
    qk_rope_head_dim: int
    window: int
    ratio: int = 0

    @property
    def compressor_groups(self) -> int:
        return 2 if self.ratio == 4 else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossAttention(FullAttention):
    """Attention to an encoder's output of at most `encoder_tokens` tokens: constant per sequence."""

    encoder_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedAttention:
    """Reuses the K and V of an earlier layer (`num_kv_shared_layers` of Gemma 3n, 4): stores nothing, reads the same.

    `source_layer` is that layer's index: the last one of the same type that keeps a cache; None where it is not known.
    """

    source_layer: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba1:
    """Selective state space, first form: one state row per inner channel."""

    inner_dim: int
    state_dim: int
    conv_kernel: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2:
    """Selective state space, second form: heads of head_dim x state_dim; the convolution also covers B and C."""

    heads: int
    head_dim: int
    state_dim: int
    groups: int
    conv_kernel: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDeltaNet:
    """Gated delta rule (Qwen3-Next, Qwen3.5): a value_dim x key_dim matrix per value head."""

    key_heads: int
    value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KimiDeltaAttention:
    """KDA (Kimi Linear): a head_dim x head_dim matrix per head, three convolutions."""

    heads: int
    head_dim: int
    conv_kernel: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LightningAttention:
    """Linear attention with decay (MiniMax-Text-01): a head_dim x head_dim matrix per head, no convolution."""

    heads: int
    head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConvolution:
    """A gated short convolution (LFM2): its last inputs are the whole state."""

    dim: int
    conv_kernel: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherState:
    """Constant state of a kind that has no name here: elements of a sequence, tensor-parallel ranks share them out."""

    recurrent_elements: int
    conv_elements: int = 0


RecurrentLayer = (
    Mamba1 | Mamba2 | GatedDeltaNet | KimiDeltaAttention | LightningAttention | ShortConvolution | OtherState
)
CacheKind = FullAttention | LatentAttention | CompressedAttention | SharedAttention | RecurrentLayer


IndexDtype = Literal["fp8", "fp4", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexer:
    """Keys of a sparse-attention indexer: one vector of `head_dim` for every `ratio` tokens, replicated under TP.

    `dtype` is how they are stored whatever the KV dtype is: fp8 with a 4-byte scale per 128 elements (DeepSeek-V3.2,
    GLM-5), fp4 with a scale byte per 32, or bf16 (MiniMax-M3). `top_k_tokens` bounds what the main attention reads:
    tokens, or compressed rows.
    """

    head_dim: int
    heads: int
    top_k_tokens: int | None
    dtype: IndexDtype
    ratio: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One decoder layer. `cache` is None for a layer without attention or recurrence (an MLP-only layer); `cross` is
    the attention to an encoder's output that a layer of an encoder-decoder has beside its own.
    """

    cache: CacheKind | None
    indexer: Indexer | None = None
    cross: CrossAttention | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Moe:
    """Mixture of experts. `first_dense_layers` keep a dense MLP; then every `layer_step`-th layer is sparse.

    Routed experts work on `hidden_size` elements where they have a latent of their own (Nemotron 3, Kimi K3), else on
    the model's hidden size.
    """

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    shared_intermediate_size: int = 0
    first_dense_layers: int = 0
    layer_step: int = 1
    hidden_size: int | None = None

    def is_sparse(self, index: int) -> bool:
        """Whether layer `index` has experts."""
        return index >= self.first_dense_layers and (index - self.first_dense_layers) % self.layer_step == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerBits:
    """Bits of a weight in one layer, scales included: of its attention or recurrence, of its dense MLP or shared
    experts, of its routed experts. None is the model's dtype, 0 a part that the layer has not.
    """

    mixer: float | None
    dense: float | None
    experts: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """How a checkpoint's weights are stored, from its quantization_config: `method` is HF's quant_method.

    `bits_per_weight` counts scales too; None where `layers` says it of each, or where nothing does. Mixers and routed
    experts may have bits of their own, and whole parts (mixers, dense, experts, and beyond: towers and draft layers)
    may stay at the model's dtype.
    """

    method: str
    bits_per_weight: float | None
    mixer_bits: float | None = None
    expert_bits: float | None = None
    whole: frozenset[str] = frozenset()
    layers: tuple[LayerBits, ...] = ()  # one a layer, where layers are not stored alike
    embedding_bits: float | None = None  # None: it stays at the model's dtype
    head_bits: float | None = None  # of an output head that is not the embedding; None: as above


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One language model. `architecture` is HF's model_type of the text model; None means not read in any source."""

    id: str
    source: str
    architecture: str | None
    attention: str
    layers: tuple[Layer, ...]
    hidden_size: int
    vocab_size: int | None
    num_heads: int
    intermediate_size: int | None = None
    draft_layers: tuple[Layer, ...] = ()  # for multi-token prediction: not run unless asked for
    draft_modules: int = 1  # of several (MTP) each draft layer drafts one token more; one drafts them all
    moe: Moe | None = None
    tie_word_embeddings: bool | None = None
    max_position_embeddings: int | None = None
    dtype: str | None = None
    recurrent_state_dtype: str | None = None  # what the config asks for (mamba_ssm_cache_dtype, mamba_ssm_dtype)
    quantisation: Quantisation | None = None
    decoder: Decoder | None = None
    params_total: int | None = None
    params_source: str | None = None
    weights_bytes: int | None = None  # of its checkpoint as stored, where its index or headers were read
    confidence: str | None = None
    notes: str | None = None
    assumed: tuple[str, ...] = ()  # what reading it took for granted: `assumed: ...`, which every answer repeats

    @property
    def num_layers(self) -> int:
        return len(self.layers)
