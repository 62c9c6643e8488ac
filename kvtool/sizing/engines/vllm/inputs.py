"""What vLLM settles before it plans a cache: lengths, batches in flight, the cache's format and mode.

The defaults are those of `vllm serve` (EngineArgs.get_batch_defaults, VllmConfig.max_in_flight_tokens) of the release
asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvtool.catalog.gpus import Gpu, find_gpu
from kvtool.catalog.model import (
    CompressedAttention,
    FullAttention,
    LatentAttention,
    Model,
    RecurrentLayer,
    SharedAttention,
)
from kvtool.sizing.dtypes import AUTO, canonical_dtype
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.vllm.rules import VllmRules
from kvtool.sizing.engines.vllm.versions import MODELLED, rules_of
from kvtool.sizing.fit import usual_limits
from kvtool.sizing.formats import CacheFormat, parse_cache_format
from kvtool.sizing.layers import StateFormat, state_format
from kvtool.sizing.parallel import Parallel
from kvtool.system.errors import KvtoolError

ASSUMED_GPU = "H100-SXM-80GB"
# Formats of kvtool's that vLLM has too, by kvtool's names; of the latter the exact layout in a block is not modelled.
EXACT_DTYPES = ("bf16", "fp16", "fp8", "fp8_e5m2", "fp8_per_token_head", "int8_per_token_head", "fp8_ds_mla")
OTHER_DTYPES = (
    *("int4_per_token_head", "nvfp4", "nvfp4_ds_mla", "turboquant_k8v4", "turboquant_4bit_nc", "turboquant_k3v4_nc"),
    *("turboquant_3bit_nc", "ultraquant_4bit"),
)
# Architectures whose layers are made without the cache's configuration: they ignore --kv-cache-dtype.
_IGNORES_DTYPE = ("falcon", "RefinedWeb", "RefinedWebModel")
MAMBA_CACHE_MODES = (AUTO, "none", "align", "all")
_CAPABILITIES = {
    "Volta": 70,
    "Turing": 75,
    "Ampere": 80,
    "Ampere GA102": 86,
    "Ada": 89,
    "Hopper": 90,
    "Blackwell": 100,
    "Blackwell Ultra": 103,
    "Blackwell GB202": 120,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """One start of vLLM. `capability` is the card's SM (90: Hopper), None where it is no CUDA card.

    `in_flight_tokens` may be scheduled and not yet settled: windows keep their blocks for so long. `aligned_state`
    keeps recurrent state at block boundaries, for prefix caching. `encoder_tokens` is what cross attention reserves.
    `rules` are those of the release `version`.
    """

    version: str
    rules: VllmRules
    model: Model
    gpu: Gpu
    capability: int | None
    parallel: Parallel
    cache_format: CacheFormat
    state: StateFormat
    block_size: int | None
    max_model_len: int
    auto_fit: bool
    max_num_batched_tokens: int
    max_num_seqs: int
    in_flight_tokens: int
    prefix_caching: bool
    aligned_state: bool
    hybrid_manager: bool
    num_blocks: int | None
    speculative_tokens: int

    @property
    def encoder_tokens(self) -> int:
        return self.max_num_batched_tokens

    @property
    def lookahead_tokens(self) -> int:
        """Tokens that windows keep beyond their own for several draft modules, which read a prompt's end again."""
        modules = min(self.model.draft_modules, self.speculative_tokens)
        return self.speculative_tokens - 1 if self.rules.draft_lookahead and modules > 1 else 0


def resolve(model: Model, options: EngineOptions) -> Inputs:
    """The inputs of a plan. Raises KvtoolError for values that vLLM does not take."""
    _check(options)
    served = served_model(model, options.dtype)
    gpu = options.gpu or find_gpu(ASSUMED_GPU)
    rules = rules_of(options)
    limit = _max_model_len(served, options)
    tokens, sequences = _batch(served, options, gpu, limit)
    parallel = options.parallel
    prefix_caching = _caches_prefixes(served, options.enable_prefix_caching, rules)
    return Inputs(
        version=options.version or MODELLED,
        rules=rules,
        model=served,
        gpu=gpu,
        capability=capability_of(gpu),
        parallel=parallel,
        cache_format=_cache_format(served, options.kv_cache_dtype),
        state=replace(
            state_format(served, options.mamba_ssm_cache_dtype), speculative_tokens=options.num_speculative_tokens
        ),
        block_size=options.block_size,
        max_model_len=limit,
        auto_fit=options.auto_fit,
        max_num_batched_tokens=tokens,
        max_num_seqs=sequences,
        in_flight_tokens=tokens * _batches_in_flight(served, options, rules),
        prefix_caching=prefix_caching,
        aligned_state=prefix_caching and has_state(served) and rules.aligned_states,
        hybrid_manager=options.hybrid_kv_cache_manager,
        num_blocks=options.num_gpu_blocks_override,
        speculative_tokens=options.num_speculative_tokens,
    )


def has_state(model: Model) -> bool:
    """Whether any layer keeps recurrent state."""
    return any(isinstance(layer.cache, RecurrentLayer) for layer in model.layers)


def has_attention(model: Model) -> bool:
    """Whether any layer stores or reads K and V."""
    kinds = FullAttention | LatentAttention | CompressedAttention | SharedAttention
    return any(isinstance(layer.cache, kinds) for layer in model.layers)


def has_compressed(model: Model) -> bool:
    """Whether it is of DeepSeek-V4's kind: windows, and rows for several tokens each."""
    return any(isinstance(layer.cache, CompressedAttention) for layer in model.layers)


def is_encoder_decoder(model: Model) -> bool:
    """Whether layers attend to an encoder's output beside their own tokens."""
    return any(layer.cross is not None for layer in model.layers)


def _caches_prefixes(model: Model, asked: bool | None, rules: VllmRules) -> bool:
    """As asked, else on where the release has it so; not for encoder-decoder models, nor for recurrent layers alone."""
    usual = rules.hybrid_prefix_caching or not has_state(model)
    return (usual if asked is None else asked) and has_attention(model) and not is_encoder_decoder(model)


def _batches_in_flight(model: Model, options: EngineOptions, rules: VllmRules) -> int:
    """Batches whose tokens windows keep (VllmConfig.max_concurrent_batches): with async scheduling one more than
    pipeline stages, which the first runner has on one stage only.
    """
    pp = options.parallel.pp
    if not rules.in_flight_batches:
        return 1
    ahead = options.async_scheduling and (pp == 1 or rules.second_runner.runs(model))
    return pp + 1 if ahead else pp


def capability_of(gpu: Gpu) -> int | None:
    """The card's SM (90: Hopper), None where it is no CUDA card."""
    return _CAPABILITIES.get(gpu.arch or "")


def served_model(model: Model, dtype: str = AUTO) -> Model:
    """The model in the dtype vLLM serves it in: as asked; else fp32 checkpoints are cast to bf16."""
    if dtype != AUTO:
        return replace(model, dtype=dtype)
    return replace(model, dtype="bfloat16") if canonical_dtype(model.dtype or "bf16") == "fp32" else model


def ignores_cache_dtype(model: Model) -> bool:
    """Whether vLLM keeps this model's cache in the model's dtype whatever is asked for."""
    return model.architecture in _IGNORES_DTYPE


def _cache_format(model: Model, name: str) -> CacheFormat:
    found = parse_cache_format(name, model.dtype)
    known = (*EXACT_DTYPES, *OTHER_DTYPES)
    if found.name not in known and not (name == AUTO and found.name == "fp32"):
        raise KvtoolError(f"--kv-cache-dtype {name}: vLLM has none such; use one of {', '.join((AUTO, *known))}")
    if ignores_cache_dtype(model):
        return parse_cache_format(AUTO, model.dtype)
    if has_compressed(model) and (name == AUTO or found.name == "fp8_ds_mla"):
        return parse_cache_format("fp8")
    return found


def _max_model_len(model: Model, options: EngineOptions) -> int:
    """What was asked for, else what the model was made for; linear rotary scaling stretches it."""
    if options.max_model_len is not None:
        return options.max_model_len
    longest = model.max_position_embeddings
    if longest is None:
        raise KvtoolError(f"{model.id}: its longest sequence is not known: give --max-model-len")
    # The length that a Gemma 3 config gives is stretched already.
    scaling = model.decoder.rope_scaling if model.decoder and model.architecture != "gemma3_text" else None
    return int(longest * scaling.factor) if scaling and scaling.kind == "linear" else longest


def _batch(model: Model, options: EngineOptions, gpu: Gpu, max_model_len: int) -> tuple[int, int]:
    """(tokens, sequences) of a step at most; only what was not asked for is bounded by the other."""
    usual = usual_limits(gpu, huge_cards=rules_of(options).huge_cards)
    usual_tokens, sequences = usual.tokens, options.max_num_seqs or usual.sequences
    tokens = options.max_num_batched_tokens
    if tokens is None:
        if is_encoder_decoder(model):  # no chunked prefill: a whole sequence in a step
            usual_tokens = max(usual_tokens, max_model_len)
        tokens = min(usual_tokens, sequences * max_model_len)
    return tokens, sequences if options.max_num_seqs else min(sequences, tokens)


def _check(options: EngineOptions) -> None:
    counts = {
        "--block-size": options.block_size,
        "--max-model-len": options.max_model_len,
        "--max-num-batched-tokens": options.max_num_batched_tokens,
        "--max-num-seqs": options.max_num_seqs,
        "--num-gpu-blocks-override": options.num_gpu_blocks_override,
    }
    for flag, value in counts.items():
        if value is not None and value < 1:
            raise KvtoolError(f"{flag} {value} must be at least 1")
    if options.parallel.dp_attention:
        raise KvtoolError("--enable-dp-attention is SGLang's: vLLM has a cache for each replica of --dp")
    if options.mamba_cache_mode not in MAMBA_CACHE_MODES:
        modes = ", ".join(MAMBA_CACHE_MODES)
        raise KvtoolError(f"unknown --mamba-cache-mode {options.mamba_cache_mode!r}: use one of {modes}")
