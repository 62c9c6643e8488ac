"""A .gguf file's metadata -> Model. An architecture, or an attention key, that is not known here is refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kvtool.catalog.attention import attention_name
from kvtool.catalog.decoder import Decoder, Router
from kvtool.catalog.families.family import MAX_LAYERS
from kvtool.catalog.fields import Fields
from kvtool.catalog.gguf.file import GgufFile, read_gguf
from kvtool.catalog.gguf.recurrent import recurrent_at, recurrent_state
from kvtool.catalog.model import (
    CacheKind,
    FullAttention,
    LatentAttention,
    Layer,
    Model,
    Moe,
    Quantisation,
    RecurrentLayer,
    SharedAttention,
    SlidingAttention,
)
from kvtool.system.errors import KvtoolError

# GGUF's architecture -> Hugging Face's model_type, and every how many layers one is full (0: sliding ones are listed).
_ARCHITECTURES = {
    "llama": "llama", "qwen2": "qwen2", "qwen2moe": "qwen2_moe", "qwen2vl": "qwen2_vl_text", "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe", "gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3_text", "phi2": "phi",
    "phi3": "phi3", "starcoder": "gpt_bigcode", "starcoder2": "starcoder2", "stablelm": "stablelm", "falcon": "falcon",
    "gpt2": "gpt2", "gptneox": "gpt_neox", "bloom": "bloom", "mpt": "mpt", "command-r": "cohere", "cohere2": "cohere2",
    "olmo": "olmo", "olmo2": "olmo2", "olmoe": "olmoe", "granite": "granite", "granitemoe": "granitemoe",
    "glm4": "glm4", "internlm2": "internlm2", "baichuan": "baichuan", "orion": "orion", "smollm3": "smollm3",
    "nemotron": "nemotron", "exaone": "exaone", "seed_oss": "seed_oss", "gpt-oss": "gpt_oss", "arcee": "arcee",
    "minimax-m2": "minimax_m2", "ernie4_5": "ernie4_5", "mistral3": "ministral3", "deepseek2": "deepseek_v3",
    "deepseek": "deepseek", "glm4moe": "glm4_moe", "qwen3vl": "qwen3_vl_text", "qwen3vlmoe": "qwen3_vl_moe_text",
    "xverse": "xverse", "apertus": "apertus", "gemma3n": "gemma3n_text", "gemma4": "gemma4_text", "mamba": "mamba",
    "mamba2": "mamba2", "jamba": "jamba", "granitehybrid": "granitemoehybrid", "nemotron_h": "nemotron_h",
    "nemotron_h_moe": "nemotron_h", "qwen3next": "qwen3_next", "qwen35": "qwen3_5_text",
    "qwen35moe": "qwen3_5_moe_text", "kimi-linear": "kimi_linear", "lfm2": "lfm2", "lfm2moe": "lfm2_moe",
}  # fmt: skip
_FULL_EVERY = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "cohere2": 4, "gpt-oss": 2}
_ALL_SLIDING = ("phi3",)
_SHARES = ("gemma3n", "gemma4")  # their last layers reuse the K and V of earlier ones
_RUNS = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "mixtral": "mixtral", "qwen3_moe": "qwen3_moe"}
_SUSPECT = ("attention.", "ssm.", "wkv.", "shortconv.", "kda.", "time_mix", "token_shift", "full_attention_interval")
_HARMLESS = ("epsilon", "scale", "clamp_kqv", "max_alibi_bias", "temperature_length", "causal")


def gguf_model(path: Path) -> Model:
    """The model in a .gguf file, its parameters counted from its tensors. Raises KvtoolError."""
    file = read_gguf(path)
    arch = file.metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in _ARCHITECTURES:
        raise KvtoolError(f"{path}: architecture {str(arch)[:40]!r} is not known (known: {', '.join(_ARCHITECTURES)})")
    own = {key.removeprefix(f"{arch}."): value for key, value in file.metadata.items() if key.startswith(f"{arch}.")}
    fields = Fields(own, where=str(path))
    count = fields.integer("block_count", high=MAX_LAYERS) - (
        fields.optional_integer("nextn_predict_layers", low=0) or 0
    )
    layers = _layers(fields, arch, count)
    heads = _heads(fields, layers)
    moe = _experts(fields)
    architecture = "mixtral" if arch == "llama" and moe else _ARCHITECTURES[arch]
    tensors = {tensor.name for tensor in file.tensors}
    _refuse_unread(fields)
    return Model(
        id=path.stem,
        source=str(path),
        architecture=architecture,
        attention=attention_name(layers, heads),
        layers=tuple(layers),
        hidden_size=fields.integer("embedding_length"),
        vocab_size=fields.optional_integer("vocab_size") or _vocabulary(file),
        num_heads=heads,
        intermediate_size=_width(fields),
        moe=moe,
        tie_word_embeddings="output.weight" not in tensors,
        max_position_embeddings=fields.optional_integer("context_length"),
        quantisation=_quantisation(file),
        decoder=_decoder(file, fields, architecture, tensors, getattr(layers[0].cache, "k_head_dim", None)),
        params_total=sum(tensor.params for tensor in file.tensors),
        params_source="tensors of the GGUF file",
        confidence="read from its GGUF metadata",
    )


def _one(fields: Fields, name: str) -> int:
    """A number that GGUF may write once a layer; layers that differ are refused."""
    values = set(_each(fields, name))
    if len(values) != 1:
        raise fields.error(f"{name!r} differs between layers, which is not known")
    return values.pop()


def _each(fields: Fields, name: str, low: int = 1) -> list[int]:
    if isinstance(fields.get(name), list):
        return fields.integers(name, low=low) or []
    return [fields.integer(name, low=low)]


def _heads(fields: Fields, layers: list[Layer]) -> int:
    """Query heads; 0 in a model without attention."""
    if all(isinstance(layer.cache, RecurrentLayer) for layer in layers):
        fields.read |= {"attention.head_count", "attention.head_count_kv"}
        return 0
    return _one(fields, "attention.head_count")


def _layers(fields: Fields, arch: str, count: int) -> list[Layer]:
    state = recurrent_state(fields, arch)
    if state is None:
        return _attention_layers(fields, arch, count)
    kv_heads = _kv_heads(fields, count)
    recurrent = recurrent_at(fields, arch, count, kv_heads)
    if all(recurrent):
        return [Layer(cache=state)] * count
    attention = _attention(fields, arch, count)
    caches = [state if flag else attention[layer] for layer, flag in enumerate(recurrent)]
    return [Layer(cache=cache) for cache in caches]


def _attention_layers(fields: Fields, arch: str, count: int) -> list[Layer]:
    kinds = _attention(fields, arch, count)
    for layer, kind in enumerate(kinds):
        if kind is None:
            raise fields.error(f"'attention.head_count_kv' is 0 in layer {layer}, which is not known for {arch!r}")
    shared = fields.integer("attention.shared_kv_layers", low=0, high=count - 1) if arch in _SHARES else 0
    return [Layer(cache=kind) for kind in _share_last(fields, kinds, shared)]


def _share_last(fields: Fields, kinds: Sequence[CacheKind | None], shared: int) -> list[CacheKind | None]:
    """The last `shared` layers take K and V from the last layer of their own type that stores any."""
    stored: list[CacheKind | None] = list(kinds[: len(kinds) - shared])
    types = [type(kind) for kind in stored]
    reused: list[CacheKind | None] = []
    for kind in kinds[len(stored) :]:
        if type(kind) not in types:
            raise fields.error(f"'attention.shared_kv_layers' {shared} leaves no layer to share with")
        reused.append(SharedAttention(source_layer=len(types) - 1 - types[::-1].index(type(kind))))
    return stored + reused


def _attention(fields: Fields, arch: str, count: int) -> Sequence[CacheKind | None]:
    """What every layer keeps where it has attention; None where it has no KV heads."""
    if fields.get("attention.kv_lora_rank") is not None:
        return [_latent(fields)] * count
    heads = _one(fields, "attention.head_count")
    default = fields.integer("embedding_length") // heads
    key, value = (fields.optional_integer(f"attention.{name}_length") or default for name in ("key", "value"))
    full = []
    for number in _kv_heads(fields, count):
        if number and heads % number:
            raise fields.error(f"{heads} attention heads do not divide among {number} key-value heads")
        full.append(FullAttention(kv_heads=number, k_head_dim=key, v_head_dim=value) if number else None)
    return _windowed(fields, arch, full)


def _kv_heads(fields: Fields, count: int) -> list[int]:
    """KV heads of each layer: one number for all, a list, or as many as query heads."""
    name = "attention.head_count_kv" if fields.has("attention.head_count_kv") else "attention.head_count"
    if not fields.has(name):
        return [0] * count
    given = _each(fields, name, low=0)
    given = given * count if len(given) == 1 else given
    if len(given) < count:
        raise fields.error(f"{name!r} has {len(given)} items, but there are {count} layers")
    return given[:count]


def _latent(fields: Fields) -> LatentAttention:
    rope = fields.integer("rope.dimension_count")
    fields.read |= {"attention.key_length", "attention.value_length", "attention.head_count_kv"}
    key = fields.optional_integer("attention.key_length_mla") or fields.integer("attention.key_length", low=rope + 1)
    return LatentAttention(
        kv_lora_rank=fields.integer("attention.kv_lora_rank"),
        qk_rope_head_dim=rope,
        qk_nope_head_dim=key - rope,
        v_head_dim=fields.optional_integer("attention.value_length_mla") or fields.integer("attention.value_length"),
        q_lora_rank=fields.optional_integer("attention.q_lora_rank"),
    )


def _windowed(fields: Fields, arch: str, full: list[FullAttention | None]) -> list[FullAttention | None]:
    """Which layers slide: as the file lists them, or by the architecture's own pattern."""
    window = fields.optional_integer("attention.sliding_window", low=0)
    pattern = fields.get("attention.sliding_window_pattern")
    if not window:
        if arch in _FULL_EVERY:
            raise fields.error("field 'attention.sliding_window' is missing")
        return full
    if isinstance(pattern, list):
        local = [bool(flag) for flag in pattern[: len(full)]]
    elif arch in _FULL_EVERY or pattern is not None:
        every = fields.optional_integer("attention.sliding_window_pattern") or _FULL_EVERY[arch]
        local = [(layer + 1) % every != 0 for layer in range(len(full))]
    elif arch in _ALL_SLIDING:
        longest = fields.optional_integer("context_length")  # a window that long cuts nothing off (Phi-3.5)
        local = [longest is None or window < longest] * len(full)
    else:
        raise fields.error("'attention.sliding_window' is set, but not which layers have it")
    if len(local) != len(full):
        raise fields.error(f"'attention.sliding_window_pattern' has {len(local)} items for {len(full)} layers")
    own = [fields.optional_integer(f"attention.{name}_length_swa") for name in ("key", "value")]
    return [_sliding(kind, window, *own) if kind and slides else kind for kind, slides in zip(full, local, strict=True)]


def _sliding(kind: FullAttention, window: int, key: int | None, value: int | None) -> SlidingAttention:
    """Sliding layers may have head sizes of their own (Gemma 4)."""
    return SlidingAttention(
        kv_heads=kind.kv_heads,
        k_head_dim=key or kind.k_head_dim,
        v_head_dim=value or kind.v_head_dim,
        window=window,
    )


def _experts(fields: Fields) -> Moe | None:
    count = fields.optional_integer("expert_count", low=0)
    if not count:
        return None
    width = fields.optional_integer("expert_feed_forward_length") or _one(fields, "feed_forward_length")
    shared = fields.optional_integer("expert_shared_feed_forward_length", low=0)
    number = fields.optional_integer("expert_shared_count", low=0) or 0
    return Moe(
        num_experts=count,
        experts_per_token=fields.integer("expert_used_count", high=count),
        intermediate_size=width,
        shared_intermediate_size=number * width if shared is None else shared,
        first_dense_layers=fields.optional_integer("leading_dense_block_count", low=0) or 0,
        layer_step=fields.optional_integer("interleave_moe_layer_step") or 1,
    )


def _width(fields: Fields) -> int | None:
    widths = set(_each(fields, "feed_forward_length", low=0)) if fields.has("feed_forward_length") else set()
    widths.discard(0)
    return widths.pop() if len(widths) == 1 else None


def _vocabulary(file: GgufFile) -> int | None:
    count = file.metadata.get("tokenizer.ggml.tokens")
    return count if type(count) is int and count > 0 else None


def _quantisation(file: GgufFile) -> Quantisation | None:
    """Mean bits of all weights; None for a file of plain floats."""
    if all(tensor.dtype in {"F32", "F16", "BF16"} for tensor in file.tensors):
        return None
    params = sum(tensor.params for tensor in file.tensors)
    return Quantisation(method="gguf", bits_per_weight=8 * sum(t.size_bytes for t in file.tensors) / params)


def _decoder(
    file: GgufFile, fields: Fields, architecture: str, tensors: set[str], head_dim: int | None
) -> Decoder | None:
    """The decoder, exactly; None for an architecture the engine does not run or positions the file scales."""
    family = _RUNS.get(architecture)
    scaled = fields.text("rope.scaling.type", default="none") != "none" or "rope_freqs.weight" in tensors
    if family is None or scaled or fields.get("rope.dimension_count") not in (None, head_dim):
        return None
    eos = file.metadata.get("tokenizer.ggml.eos_token_id")
    return Decoder(
        family=family,
        exact=True,
        norm_eps=fields.number("attention.layer_norm_rms_epsilon", default=1e-6),
        rope_theta=fields.number("rope.freq_base", default=10000.0),
        qkv_bias="blk.0.attn_q.bias" in tensors,
        output_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
        router=Router() if family in {"mixtral", "qwen3_moe"} else None,
        eos_token_ids=(eos,) if type(eos) is int else (),
    )


def _refuse_unread(fields: Fields) -> None:
    for name, value in fields.values.items():
        if name not in fields.read and name.startswith(_SUSPECT) and not name.endswith(_HARMLESS) and value:
            raise fields.error(
                f"field {name!r} is not known for this architecture and may change what its cache stores"
            )
