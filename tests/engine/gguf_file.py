"""Writes a transformers model as llama.cpp's converter does: with its names and its order of rows."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES, GGMLQuantizationType
from torch import Tensor
from transformers import PreTrainedModel

_ROTATES_PAIRS = (MODEL_ARCH.LLAMA,)


def write_gguf(
    model: PreTrainedModel,
    path: Path,
    arch: MODEL_ARCH,
    quantisation: GGMLQuantizationType = GGMLQuantizationType.F32,
) -> None:
    """Matrices in `quantisation`, vectors in fp32. What a quantised file holds is written back into `model`."""
    config = model.config
    writer = gguf.GGUFWriter(path, MODEL_ARCH_NAMES[arch])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if getattr(config, "num_experts_per_tok", None):
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(getattr(config, "moe_intermediate_size", config.intermediate_size))
    _add_tensors(writer, model, arch, quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tensors(
    writer: gguf.GGUFWriter, model: PreTrainedModel, arch: MODEL_ARCH, quantisation: GGMLQuantizationType
) -> None:
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    tensors = model.state_dict()
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    for name, tensor in tensors.items():
        for part, values in _split_experts(name, tensor):
            kind = quantisation if values.dim() > 1 else GGMLQuantizationType.F32
            quantised = gguf.quants.quantize(values.contiguous().numpy(), kind)
            values.copy_(torch.from_numpy(gguf.quants.dequantize(quantised, kind)))
            interleaved = heads.get(name.split(".")[-2]) if arch in _ROTATES_PAIRS else None
            if interleaved:
                quantised = _interleave(quantised, interleaved)
            writer.add_tensor(names.get_name(part, try_suffixes=(".weight", ".bias")), quantised, raw_dtype=kind)


def _split_experts(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """transformers keeps gate and up of all experts in one tensor, llama.cpp in two."""
    if not name.endswith("gate_up_proj"):
        return [(name if name.endswith((".weight", ".bias")) else f"{name}.weight", tensor)]
    gate, up = tensor.chunk(2, dim=1)
    return [(name.replace("gate_up_proj", f"{part}_proj.weight"), half) for part, half in (("gate", gate), ("up", up))]


def _interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from halves to pairs; whole rows move, so quantised ones can move too."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
