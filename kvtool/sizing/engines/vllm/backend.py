"""The attention kernels vLLM picks on a card, as far as they decide how many tokens a block holds."""

from __future__ import annotations

from dataclasses import dataclass

from kvtool.catalog.model import FullAttention, LatentAttention, Model
from kvtool.sizing.engines.vllm.inputs import Inputs, has_compressed
from kvtool.sizing.engines.vllm.refusal import RefusedError

DEFAULT_BLOCK = 16
_MLA_DTYPES = ("bf16", "fp16", "fp8", "fp8_ds_mla", "nvfp4_ds_mla")
HOPPER = 90
_SPARSE_MLA_BLOCK = 64  # FlashMLA's sparse kernels and the indexer's
_BLOCK_SPARSE_BLOCK = 128  # MiniMax-M3: a page is one block of its sparse pattern
_FLASH_MLA_BLOCK = 64
_FA4_FP8_BLOCK = 64  # one tile of the FlashAttention 4 kernel that reads fp8 on Hopper, for heads of 512
_BLACKWELL_MLA_BLOCK = 32  # FlashInfer
_COMPRESSED_BLOCK, _COMPRESSED_RATIO = 256, 128  # DeepSeek-V4: a block must hold a row of its widest groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """`kernel_block`: block sizes are its multiples; `block_size`: what blocks of attention hold to begin with."""

    kernel_block: int
    block_size: int


def choose_backend(inputs: Inputs) -> Backend:
    """The kernels that take this cache and block size. Raises RefusedError where vLLM finds none."""
    if has_compressed(inputs.model):
        return _compressed_backend(inputs)
    kernel = _kernel_block(inputs)
    asked = inputs.block_size
    if asked is not None and asked % kernel:
        raise RefusedError(
            f"No valid attention backend found with block_size={asked}: the kernels for {inputs.model.id} take "
            f"multiples of {kernel}"
        )
    return Backend(kernel_block=kernel, block_size=asked or max(kernel, DEFAULT_BLOCK))


def _compressed_backend(inputs: Inputs) -> Backend:
    """DeepSeek-V4's own kernels; vLLM 0.33 fails on what they do not take without saying why."""
    block_size, name = inputs.block_size or _COMPRESSED_BLOCK, inputs.cache_format.name
    if name != "fp8":
        raise RefusedError(f"{inputs.model.id}: DeepSeek-V4 only supports fp8 KV cache, got {name}")
    if not inputs.hybrid_manager:
        raise RefusedError(
            "MLAAttentionSpec.__init__() got an unexpected keyword argument 'bounded_replay': vLLM 0.33 cannot keep "
            "the windows of DeepSeek-V4 as full attention"
        )
    if block_size < _COMPRESSED_RATIO:
        raise RefusedError(
            f"ZeroDivisionError: a block of {block_size} tokens holds no row of {_COMPRESSED_RATIO} tokens; "
            f"vLLM takes {_COMPRESSED_BLOCK} by itself"
        )
    return Backend(kernel_block=_COMPRESSED_RATIO, block_size=block_size)


def _kernel_block(inputs: Inputs) -> int:
    model = inputs.model
    latent = any(isinstance(layer.cache, LatentAttention) for layer in model.layers)
    if latent and inputs.cache_format.name not in _MLA_DTYPES:
        raise RefusedError(
            f"No valid attention backend found with kv_cache_dtype={inputs.cache_format.name}: those of MLA take "
            "auto, bfloat16 and fp8"
        )
    if any(layer.indexer is not None for layer in model.layers):
        return _SPARSE_MLA_BLOCK if latent else _BLOCK_SPARSE_BLOCK
    if latent:
        return _mla_block(inputs)
    wide = inputs.capability == HOPPER and inputs.cache_format.name == "fp8" and widest_head(model) == 512
    return _FA4_FP8_BLOCK if wide and _takes(inputs, _FA4_FP8_BLOCK) else DEFAULT_BLOCK


def _mla_block(inputs: Inputs) -> int:
    """FlashMLA reads fp8 on Hopper; where it cannot take the block size asked for, and elsewhere, Triton does."""
    if inputs.capability == HOPPER and inputs.cache_format.name == "fp8" and _takes(inputs, _FLASH_MLA_BLOCK):
        return _FLASH_MLA_BLOCK
    blackwell = inputs.capability in (100, 103) and _takes(inputs, _BLACKWELL_MLA_BLOCK)
    return _BLACKWELL_MLA_BLOCK if blackwell else DEFAULT_BLOCK


def _takes(inputs: Inputs, kernel_block: int) -> bool:
    return inputs.block_size is None or inputs.block_size % kernel_block == 0


def widest_head(model: Model) -> int:
    """The largest K head of all layers with heads; 0 where there is none."""
    return max((layer.cache.k_head_dim for layer in model.layers if isinstance(layer.cache, FullAttention)), default=0)
