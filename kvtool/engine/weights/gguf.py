"""Weights of a GGUF file under HF's names, dequantised by the `gguf` package (llama.cpp's own)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvtool.engine.weights.gguf_blocks import blocks_of
from kvtool.engine.weights.source import finite
from kvtool.kernels.blocks import Blocks
from kvtool.system.errors import KvtoolError

_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_INNER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}
_EXPERT_PARTS = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
# llama.cpp rotates pairs (0, 1), (2, 3), … for these architectures, so its converter interleaved their Q and K rows.
_INTERLEAVED_ARCHITECTURES = ("llama",)


class GgufWeights:
    """The tensors of one .gguf file, memory-mapped; one is dequantised when it is asked for."""

    even_routing = False

    def __init__(self, path: Path, *, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        reader = _open(path)
        self.description = f"GGUF {path.name}"
        self._head_dim = head_dim
        self._dtype = dtype
        self._device = device
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        architecture = reader.get_field("general.architecture")
        self._interleaved = architecture is not None and architecture.contents() in _INTERLEAVED_ARCHITECTURES

    def blocks(self, name: str) -> Blocks | None:
        stored_name, expert = _gguf_name(name)
        stored = self._tensors.get(stored_name)
        if stored is None or expert is not None or self._device.type != "cpu" or self._dtype != torch.bfloat16:
            return None
        found = blocks_of(stored.tensor_type.name, torch.from_numpy(stored.data.copy()))
        if found is not None and self._has_interleaved_rows(name):
            return found.map(lambda rows: _deinterleave_rows(rows, self._head_dim))
        return found

    def tensor(self, name: str, *shape: int) -> Tensor:
        stored_name, expert = _gguf_name(name)
        stored = self._tensors.get(stored_name)
        if stored is None or (expert is not None and expert >= len(stored.data)):
            raise KvtoolError(f"the GGUF file has no tensor {stored_name!r} (for {name!r})")
        values = _dequantised(stored, stored.data if expert is None else stored.data[expert])
        if tuple(values.shape) != shape:
            raise KvtoolError(
                f"tensor {stored.name!r} has shape {list(values.shape)}, but the metadata says {list(shape)}"
            )
        if self._has_interleaved_rows(name):
            values = _deinterleave_rows(values, self._head_dim)
        return finite(stored.name, values.to(device=self._device, dtype=self._dtype, copy=True))

    def _has_interleaved_rows(self, name: str) -> bool:
        return self._interleaved and name.split(".")[-2] in ("q_proj", "k_proj")


def _open(path: Path) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise KvtoolError("reading a GGUF file needs the gguf package: pip install 'kvtool[gguf]'") from error
    try:
        return gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise KvtoolError(f"{path} is not a readable GGUF file: {error}") from error


def _dequantised(stored: Any, data: Any) -> Tensor:
    import gguf

    try:
        values = gguf.quants.dequantize(data, stored.tensor_type)
    except NotImplementedError as error:
        kind = stored.tensor_type.name
        raise KvtoolError(f"tensor {stored.name!r} is {kind}, which the gguf package cannot dequantise") from error
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def _gguf_name(name: str) -> tuple[str, int | None]:
    """The stored tensor, and the row of it where it holds all experts: `model.layers.3.mlp.experts.7.up_proj.weight`
    -> `blk.3.ffn_up_exps.weight`, 7."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if match is None:
        return _OUTER.get(name, name), None
    layer, module, kind = match.groups()
    expert = re.fullmatch(r"mlp\.experts\.(\d+)\.(\w+)", module)
    if expert is None:
        return f"blk.{layer}.{_INNER.get(module, module)}.{kind}", None
    return f"blk.{layer}.ffn_{_EXPERT_PARTS[expert[2]]}_exps.{kind}", int(expert[1])


def _deinterleave_rows(values: Tensor, head_dim: int) -> Tensor:
    """Rows (or bias entries) of each head from pair order 0 h 1 h+1 … back to halves 0 1 … h h+1 …."""
    paired = values.unflatten(0, (-1, head_dim // 2, 2))
    halves: Tensor = paired.transpose(1, 2)
    return halves.reshape(values.shape)
