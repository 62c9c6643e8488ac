"""How many parameters a decoder has, worked out from its shape, for the families whose blocks are known.

Multi-token-prediction layers, vision towers and audio encoders are not counted: a text decode step does not run them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvtool.catalog.model import (
    FullAttention,
    GatedDeltaNet,
    KimiDeltaAttention,
    LatentAttention,
    Layer,
    LightningAttention,
    Mamba1,
    Mamba2,
    Model,
    OtherState,
    RecurrentLayer,
    SharedAttention,
    ShortConvolution,
)
from kvtool.units import ceil_div


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParams:
    """One layer's parameters: `mixer` is its attention or recurrence, `rest` its norms, dense MLP, router and shared
    experts, `experts` all routed ones.
    """

    mixer: int
    rest: int
    experts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamCount:
    """Parameters by how a decode step reads them: of `embedding` one row a token, of `experts` those chosen, the rest
    whole. `head` is 0 where the output head is the embedding (`tied`), which is then read whole.
    """

    embedding: int
    head: int
    tied: bool
    layers: int
    experts: int
    sparse_layers: int = 0
    by_layer: tuple[LayerParams, ...] = ()

    @property
    def total(self) -> int:
        return self.embedding + self.head + self.layers + self.experts

    @property
    def dense_read(self) -> int:
        """Parameters that every step reads whatever its batch: all but routed experts and the input embedding."""
        return self.layers + (self.embedding if self.tied else self.head)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """How a family's blocks differ from Llama's: MLP matrices, biases, norms per layer, learned positions."""

    mlp_matrices: int = 3
    qkv_bias: bool = False
    all_bias: bool = False  # every projection has a bias, and every norm
    norm_bias: bool = True  # False: norms have none even so
    sinks: bool = False  # a learned logit for each head of attention
    norms: int = 2
    qk_norm: str = "none"  # none | head: one vector of head_dim each | full: over all heads
    key_is_value: bool = False  # full layers have no projection for V (Gemma 4)
    gated_output: bool = False  # the query projection also makes an output gate
    extra_positions: int | None = None  # rows of a learned position table beyond max_position_embeddings
    embedding_norm: bool = False
    mixer_or_mlp: bool = False  # a layer has either attention (or recurrence) or an MLP

    @property
    def norm_vectors(self) -> int:
        """Of hidden size, that a norm has: a weight, and a bias where it has one."""
        return 2 if self.all_bias and self.norm_bias else 1


_LLAMA = _Family()
_QKV_BIAS = _Family(qkv_bias=True)
_HEAD_NORM = _Family(qk_norm="head")
_FULL_NORM = _Family(qk_norm="full")
_PLAIN_MLP = _Family(mlp_matrices=2, all_bias=True)
_FALCON = _Family(mlp_matrices=2, norms=1)
FAMILIES: dict[str, _Family] = {
    **dict.fromkeys(
        ("llama", "Yi", "aquila", "cwm", "deepseek", "gemma", "granite", "granitemoe", "granitemoeshared"), _LLAMA
    ),
    **dict.fromkeys(
        ("granitemoehybrid", "internlm2", "internlm3", "lfm2", "llama4_text", "minicpm", "ministral"), _LLAMA
    ),
    **dict.fromkeys(("mistral", "mistral3", "ministral3", "mixtral", "olmo", "phi3", "smollm3"), _LLAMA),
    **dict.fromkeys(("jamba", "minimax", "minimax_text_01"), _LLAMA),
    **dict.fromkeys(
        (
            "glm4_moe_lite",
            "mistral4",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "glm_moe_dsa",
            "kimi_k2",
            "kimi_linear",
            "minicpm3",
        ),
        _LLAMA,
    ),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"), _QKV_BIAS),
    **dict.fromkeys(("chatglm", "glm", "mimo", "seed_oss"), _QKV_BIAS),
    **dict.fromkeys(("qwen3", "qwen3_moe", "qwen3_vl_text", "qwen3_vl_moe_text", "qwen3_omni_moe_text"), _HEAD_NORM),
    **dict.fromkeys(("glm4_moe", "glm4v_moe_text", "minimax_m3"), _HEAD_NORM),
    **dict.fromkeys(("minimax_m2", "olmo2", "olmo3", "olmoe"), _FULL_NORM),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), _Family(qk_norm="head", gated_output=True)),
    **dict.fromkeys(("gemma2", "glm4", "glm4v_text"), _Family(norms=4)),
    "gemma3_text": _Family(norms=4, qk_norm="head"),
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text"), _Family(norms=4, qk_norm="head", key_is_value=True)),
    **dict.fromkeys(("cohere", "cohere2"), _Family(norms=1)),
    "gpt_oss": _Family(all_bias=True, norm_bias=False, sinks=True),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), _Family(mlp_matrices=2, all_bias=True, extra_positions=0)),
    "opt": _Family(mlp_matrices=2, all_bias=True, extra_positions=2),
    "bloom": _Family(mlp_matrices=2, all_bias=True, embedding_norm=True),
    **dict.fromkeys(("starcoder2", "gpt_neox"), _PLAIN_MLP),
    **dict.fromkeys(("phi", "phi-msft"), _Family(mlp_matrices=2, all_bias=True, norms=1)),
    **dict.fromkeys(("falcon", "RefinedWeb", "RefinedWebModel", "gptj"), _FALCON),
    "mpt": _Family(mlp_matrices=2),
    "nemotron_h": _Family(mlp_matrices=2, norms=1, mixer_or_mlp=True),
}

_GATED_EXPERTS = ("deepseek_v4", "gemma4_text", "gemma4_unified_text")  # the rest is not counted; three matrices each


def count_params(model: Model) -> ParamCount | None:
    """The count from the shape, or None where the family or a size of its blocks is not known."""
    family = FAMILIES.get(model.architecture or "")
    if family is None or model.vocab_size is None or not _has_mlp_sizes(model) or not _has_latent_sizes(model):
        return None
    if family.key_is_value and (model.moe is not None or any(_shares(layer) for layer in model.layers)):
        # Gemma 4's experts stand beside a dense MLP, and its small ones embed each layer apart: neither is counted.
        return None
    embedding = model.vocab_size * model.hidden_size
    tied = bool(model.tie_word_embeddings)
    sparse = [_is_sparse(model, index) and _has_mlp(family, layer) for index, layer in enumerate(model.layers)]
    by_layer = _params_by_layer(model, family, sparse)
    return ParamCount(
        embedding=embedding,
        head=0 if tied else embedding,
        tied=tied,
        layers=sum(layer.mixer + layer.rest for layer in by_layer) + _outside_layers(model, family),
        experts=sum(layer.experts for layer in by_layer),
        sparse_layers=sum(sparse),
        by_layer=by_layer,
    )


def experts_stored(model: Model) -> int | None:
    """Routed experts of all layers, draft layers included, of families of which only those are known; else None."""
    if model.architecture not in _GATED_EXPERTS or model.moe is None:
        return None
    layers = sum(_is_sparse(model, index) for index in range(model.num_layers + len(model.draft_layers)))
    return layers * _expert_params(model, _LLAMA)


def _has_mlp_sizes(model: Model) -> bool:
    dense_layers = model.moe is None or any(not _is_sparse(model, index) for index in range(model.num_layers))
    return model.intermediate_size is not None or not dense_layers


def _shares(layer: Layer) -> bool:
    return isinstance(layer.cache, SharedAttention)


def _has_latent_sizes(model: Model) -> bool:
    """Whether every latent has the head sizes that its projections are made of; the cache needs none of them."""
    latents = [layer.cache for layer in model.layers if isinstance(layer.cache, LatentAttention)]
    return all(latent.v_head_dim is not None and latent.qk_nope_head_dim is not None for latent in latents)


def _is_sparse(model: Model, index: int) -> bool:
    """Whether a layer's MLP is a mixture of experts."""
    return model.moe is not None and model.moe.is_sparse(index)


def _outside_layers(model: Model, family: _Family) -> int:
    """The final norm, learned positions, and a norm after the embedding."""
    norm = model.hidden_size * family.norm_vectors
    positions = 0
    if family.extra_positions is not None:
        positions = ((model.max_position_embeddings or 0) + family.extra_positions) * model.hidden_size
    return norm + positions + (norm if family.embedding_norm else 0)


def _params_by_layer(model: Model, family: _Family, sparse: Sequence[bool]) -> tuple[LayerParams, ...]:
    """Most layers are one and the same object, which is counted once."""
    kinds = {(id(layer), is_sparse): layer for layer, is_sparse in zip(model.layers, sparse, strict=True)}
    counted = {kind: _layer_params(model, family, layer, kind[1]) for kind, layer in kinds.items()}
    return tuple(counted[id(layer), is_sparse] for layer, is_sparse in zip(model.layers, sparse, strict=True))


def _layer_params(model: Model, family: _Family, layer: Layer, sparse: bool) -> LayerParams:
    norms = family.norms * model.hidden_size * family.norm_vectors
    mlp = _mlp_params(model, family, sparse) if _has_mlp(family, layer) else 0
    return LayerParams(
        mixer=_mixer_params(model, family, layer),
        rest=norms + mlp,
        experts=_expert_params(model, family) if sparse else 0,
    )


def _has_mlp(family: _Family, layer: Layer) -> bool:
    return layer.cache is None or not family.mixer_or_mlp


def _mixer_params(model: Model, family: _Family, layer: Layer) -> int:
    """Attention or recurrence, and the indexer beside it."""
    match layer.cache:
        case LatentAttention():
            params = _latent_params(model, layer.cache)
        case FullAttention():
            params = _heads_params(model, family, layer.cache)
        case Mamba1() | Mamba2() | GatedDeltaNet() | KimiDeltaAttention() | LightningAttention() | ShortConvolution():
            params = _recurrent_params(model.hidden_size, layer.cache)
        case _:
            params = 0
    if layer.indexer is not None:
        q_width = layer.cache.q_lora_rank if isinstance(layer.cache, LatentAttention) else None
        index_heads, index_dim = layer.indexer.heads, layer.indexer.head_dim
        params += (q_width or model.hidden_size) * index_heads * index_dim
        params += model.hidden_size * (index_dim + index_heads) + 2 * index_dim
    return params


def _heads_params(model: Model, family: _Family, cache: FullAttention) -> int:
    hidden, heads = model.hidden_size, model.num_heads
    q_width = heads * cache.k_head_dim * (2 if family.gated_output else 1)
    kv_width = cache.kv_heads * (cache.k_head_dim + cache.v_head_dim)
    if family.key_is_value and type(cache) is FullAttention:
        kv_width = cache.kv_heads * cache.k_head_dim
    params = hidden * (q_width + kv_width) + heads * cache.v_head_dim * hidden
    if family.qkv_bias or family.all_bias:
        params += q_width + kv_width
    if family.all_bias:
        params += hidden
    if family.sinks:
        params += heads
    if family.qk_norm == "head":
        params += 2 * cache.k_head_dim
    if family.qk_norm == "full":
        params += (heads + cache.kv_heads) * cache.k_head_dim
    return params


def _latent_params(model: Model, cache: LatentAttention) -> int:
    """DeepSeek's projections: queries through their own rank or straight, the latent, its expansion, the output."""
    hidden, heads = model.hidden_size, model.num_heads
    nope, v_dim, rope = cache.qk_nope_head_dim or 0, cache.v_head_dim or 0, cache.qk_rope_head_dim
    q_width = heads * (nope + rope)
    query = cache.q_lora_rank * (hidden + 1 + q_width) if cache.q_lora_rank else hidden * q_width
    latent = hidden * (cache.kv_lora_rank + rope) + cache.kv_lora_rank
    return query + latent + cache.kv_lora_rank * heads * (nope + v_dim) + heads * v_dim * hidden


def _recurrent_params(hidden: int, cache: RecurrentLayer) -> int:
    match cache:
        case Mamba1():
            inner, state, dt_rank = cache.inner_dim, cache.state_dim, ceil_div(hidden, 16)
            scan = inner * (dt_rank + 2 * state) + dt_rank * inner + inner + inner * state + inner
            return hidden * 2 * inner + inner * (cache.conv_kernel + 1) + scan + inner * hidden
        case Mamba2():
            inner, groups = cache.heads * cache.head_dim, 2 * cache.groups * cache.state_dim
            project = hidden * (2 * inner + groups + cache.heads)
            return project + (inner + groups) * (cache.conv_kernel + 1) + 3 * cache.heads + inner + inner * hidden
        case GatedDeltaNet():
            keys, values = cache.key_heads * cache.key_head_dim, cache.value_heads * cache.value_head_dim
            project = hidden * (2 * keys + 2 * values + 2 * cache.value_heads)
            small = 2 * cache.value_heads + cache.value_head_dim
            return project + (2 * keys + values) * cache.conv_kernel + small + values * hidden
        case KimiDeltaAttention():
            width = cache.heads * cache.head_dim
            gates = 2 * (hidden * cache.head_dim + cache.head_dim * width) + hidden * cache.heads
            small = width + cache.heads + cache.head_dim
            return 3 * hidden * width + 3 * width * cache.conv_kernel + gates + small + width * hidden
        case LightningAttention():
            width = cache.heads * cache.head_dim
            return 5 * hidden * width + width
        case ShortConvolution():
            return 4 * hidden * cache.dim + cache.dim * cache.conv_kernel
        case OtherState():
            raise ValueError("a state without a name has no parameters that are known")


def _mlp_params(model: Model, family: _Family, sparse: bool) -> int:
    """The dense MLP, or the router and shared experts of a sparse one."""
    hidden = model.hidden_size
    if sparse and model.moe is not None:
        router = hidden * model.moe.num_experts + (model.moe.num_experts if family.all_bias else 0)
        latent = 2 * hidden * (model.moe.hidden_size or 0)  # into the latent of the experts, and back
        return router + latent + family.mlp_matrices * hidden * model.moe.shared_intermediate_size
    width = model.intermediate_size or 0
    bias = (family.mlp_matrices - 1) * width + hidden if family.all_bias else 0
    return family.mlp_matrices * hidden * width + bias


def _expert_params(model: Model, family: _Family) -> int:
    """All routed experts of one layer."""
    if model.moe is None:
        return 0
    width, hidden = model.moe.intermediate_size, model.moe.hidden_size or model.hidden_size
    bias = (family.mlp_matrices - 1) * width + hidden if family.all_bias else 0
    return model.moe.num_experts * (family.mlp_matrices * hidden * width + bias)


def mlp_matrices(model: Model) -> int:
    """Matrices of a dense MLP: 3 for a gated one, which most are, or 2."""
    family = FAMILIES.get(model.architecture or "")
    return 3 if family is None else family.mlp_matrices


def layer_params(model: Model, layer: Layer) -> int:
    """Parameters of one more such layer, with experts where the model's last has them. Raises KeyError for a family
    that `count_params` does not know.
    """
    family = FAMILIES[model.architecture or ""]
    counted = _layer_params(model, family, layer, _is_sparse(model, model.num_layers - 1))
    return counted.mixer + counted.rest + counted.experts
