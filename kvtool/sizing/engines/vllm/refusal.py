"""What vLLM 0.33.0 refuses to start, in its own words where they are short."""

from __future__ import annotations

import math

from kvtool.catalog.gpus import Gpu
from kvtool.catalog.model import FullAttention, LatentAttention, Model, SharedAttention
from kvtool.sizing.parallel import Parallel, pipeline_stages
from kvtool.units import GIB

# Architectures that vLLM has dropped, by the model_type of their configs: its class, the last release that had it.
_DROPPED = {
    "minimax": ("MiniMaxForCausalLM", "0.23.0"),
    "minimax_text_01": ("MiniMaxText01ForCausalLM", "0.23.0"),
    "minimax_m1": ("MiniMaxM1ForCausalLM", "0.23.0"),
    "bamba": ("BambaForCausalLM", "0.23.0"),
    "internlm": ("InternLMForCausalLM", "0.23.0"),
    "xverse": ("XverseForCausalLM", "0.23.0"),
    "baichuan": ("BaichuanForCausalLM", "0.23.0"),
    "qwen": ("QWenLMHeadModel", "0.23.0"),
    "aquila": ("AquilaForCausalLM", "0.24.0"),
    "grok-1": ("Grok1ForCausalLM", "0.24.0"),
    "persimmon": ("PersimmonForCausalLM", "0.25.0"),
    "mpt": ("MPTForCausalLM", "0.28.0"),
    "stablelm_epoch": ("StableLMEpochForCausalLM", "0.28.0"),
    "mllama_text_model": ("MllamaForConditionalGeneration", "0.10.2"),
    "RefinedWeb": ("RWForCausalLM", "0.28.0"),
    "RefinedWebModel": ("RWForCausalLM", "0.28.0"),
}
# Those it has plugins for, or none at all.
_ENCODER_DECODERS = (
    *("bart", "mbart", "marian", "pegasus", "blenderbot", "m2m_100", "plbart"),
    *("t5", "mt5", "umt5"),
)
_WITHOUT_PIPELINE = ("gemma3n_text", "mamba2", "whisper")


class RefusedError(Exception):
    """vLLM would not start; the message says why."""


def check_supported(model: Model, parallel: Parallel) -> None:
    """Raises RefusedError for a model or a layout that vLLM has no support for."""
    dropped = _DROPPED.get(model.architecture or "")
    if dropped:
        name, last = dropped
        raise RefusedError(
            f"Model architecture {name} was supported in vLLM until v{last}, and is not supported anymore"
        )
    if model.architecture in _ENCODER_DECODERS:
        raise RefusedError(f"{model.id}: of encoder-decoder models vLLM runs Whisper, not {model.architecture}")
    if parallel.pp > 1 and model.architecture in _WITHOUT_PIPELINE:
        raise RefusedError("Pipeline parallelism is not supported for this model")
    _check_sharing(model, parallel)
    if parallel.dcp > 1:
        _check_dcp(model, parallel)


def check_batch(tokens: int, sequences: int) -> None:
    """Raises RefusedError where a step could not give every sequence a token (SchedulerConfig)."""
    if tokens < sequences:
        raise RefusedError(
            f"max_num_batched_tokens ({tokens}) must be greater than or equal to max_num_seqs ({sequences})."
        )


def check_free(gpu: Gpu, utilization: float) -> None:
    """Raises RefusedError where less is free at the start than is asked for (v1/worker/utils.py: request_memory)."""
    requested = math.ceil(gpu.memory_bytes * utilization)
    if gpu.free_bytes < requested:
        free, total, wanted = (round(size / GIB, 2) for size in (gpu.free_bytes, gpu.memory_bytes, requested))
        raise RefusedError(
            f"Free memory on device cuda:0 ({free}/{total} GiB) on startup is less than desired GPU memory utilization "
            f"({utilization:g}, {wanted} GiB). Decrease GPU memory utilization or reduce GPU memory used by other "
            "processes."
        )


def _check_sharing(model: Model, parallel: Parallel) -> None:
    """A layer can only read the cache of a layer on its own pipeline stage."""
    for stage in pipeline_stages(range(model.num_layers), parallel.pp):
        for index in stage:
            cache = model.layers[index].cache
            source = cache.source_layer if isinstance(cache, SharedAttention) else None
            if source is not None and source not in stage:
                raise RefusedError(
                    f"layer {index} shares the KV cache of layer {source}, which is on another pipeline stage "
                    f"of {parallel.pp}: KV sharing across stages is not supported"
                )


def _check_dcp(model: Model, parallel: Parallel) -> None:
    """ModelConfig.verify_with_parallel_config: GQA shares out the copies that tp makes of its KV heads."""
    tp, dcp = parallel.tp, parallel.dcp
    heads = [layer.cache.kv_heads for layer in model.layers if isinstance(layer.cache, FullAttention)]
    if not heads or any(isinstance(layer.cache, LatentAttention) for layer in model.layers):
        return
    kv_heads = heads[0]
    if tp <= kv_heads:
        raise RefusedError(
            f"Decode context parallelism for GQA/MQA requires --tensor-parallel-size ({tp}) to be greater than the "
            f"model's total number of KV heads ({kv_heads})"
        )
    if dcp > tp // kv_heads:
        raise RefusedError(
            f"--decode-context-parallel-size ({dcp}) exceeds the maximum supported value ({tp // kv_heads}) for "
            f"--tensor-parallel-size ({tp}) and {kv_heads} model KV heads"
        )
    if (model.num_heads // kv_heads) % dcp:
        raise RefusedError(
            f"The model's number of query heads per KV head ({model.num_heads // kv_heads}) must be divisible by "
            f"--decode-context-parallel-size ({dcp}) for GQA/MQA"
        )
